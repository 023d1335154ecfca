"""Products by oneDNN, which torch brings along: faster than those of MKL on AMD processors."""

import torch
from torch import Tensor


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """activation(x @ weight.T + bias) by oneDNN; float32 on the CPU, where `has_onednn` is true."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    return output


def has_onednn() -> bool:
    """Whether torch offers oneDNN's fused linear operator, the one that torch.compile uses on the CPU."""
    is_built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built and hasattr(torch.ops.mkldnn, "_linear_pointwise")
