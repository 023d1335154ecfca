"""Linear layers for training."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hpcasync.onednn import has_onednn, onednn_linear


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool = False) -> Tensor:
    """x @ weight.T + bias, then ReLU if asked.

    Args:
        x: [n, dim_in]. weight: [dim_out, dim_in]. bias: [dim_out].

    Returns:
        [n, dim_out]
    """
    if _has_onednn_kernel(x, weight):
        output: Tensor = _OneDnnLinear.apply(x, weight, bias, relu)  # type: ignore[no-untyped-call]
        return output
    output = functional.linear(x, weight, bias)
    return functional.relu_(output) if relu else output


class Linear(nn.Linear):
    """torch.nn.Linear, computed by `linear`: `num_fused` projections side by side.

    Each projection is Xavier-initialised by itself; biases begin at zero.
    """

    def __init__(self, dim_in: int, dim_out: int, num_fused: int = 1) -> None:
        super().__init__(dim_in, dim_out * num_fused)
        for block in self.weight.chunk(num_fused):
            nn.init.xavier_uniform_(block)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """[n, dim_in] -> [n, num_fused * dim_out]"""
        return linear(x, self.weight, self.bias, relu=relu)


def _has_onednn_kernel(x: Tensor, weight: Tensor) -> bool:
    # Only for training, where shapes recur: oneDNN compiles a kernel, 0.3 ms, for each shape that it has not seen.
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and x.dtype == weight.dtype == torch.float32
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and has_onednn()
    )


class _OneDnnLinear(torch.autograd.Function):
    """oneDNN's matrix products are 5 to 15 % faster than those of MKL on AMD processors, and take in bias and ReLU.

    For the weight's gradient, with its long inner dimension, MKL is faster.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        output = onednn_linear(x, weight, bias, "relu" if relu else "none")
        ctx.save_for_backward(x, weight, output if relu else None)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, output = ctx.saved_tensors
        if output is not None:
            grad = torch.ops.aten.threshold_backward(grad, output, 0)
        return onednn_linear(grad, weight.t(), None), grad.t() @ x, grad.sum(0), None
