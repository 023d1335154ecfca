"""Dropout that costs little on the CPU.

torch draws one Bernoulli variate per element there, on one thread, which took a tenth of a training step. Here eight
elements share one 64-bit draw of the same generator, one byte each.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

_BYTE_VALUES = 256


def keep_mask(shape: torch.Size, probability: float) -> tuple[Tensor, float]:
    """Draw from torch's CPU generator which elements dropout keeps.

    A byte can tell only multiples of 1/256 apart, so the threshold of a call is rounded up or down at random such that
    every element is dropped with exactly `probability` (at most 255/256).

    Returns:
        uint8 of `shape`, 1 where an element is kept, and the factor for kept elements which leaves the mean unchanged.
    """
    threshold = min(int(probability * _BYTE_VALUES + torch.rand(()).item()), _BYTE_VALUES - 1)
    num_elements = math.prod(shape)
    draws = torch.empty(-(-num_elements // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.uint8)[:num_elements].view(shape).ge_(threshold)
    return kept, _BYTE_VALUES / (_BYTE_VALUES - threshold)


class _Dropout(torch.autograd.Function):
    """x -> x * kept * scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        kept, ctx.scale = keep_mask(x.shape, probability)
        ctx.save_for_backward(kept)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None


class _AddDropout(torch.autograd.Function):
    """residual, x -> residual + x * kept * scale, in one pass over memory."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, probability: float) -> Tensor:
        kept, ctx.scale = keep_mask(x.shape, probability)
        ctx.save_for_backward(kept)
        ctx.dtype = x.dtype
        return torch.addcmul(residual, x, kept, value=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad, (grad * kept).mul_(ctx.scale).to(ctx.dtype), None


def dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Set elements to zero with `probability`, scale the others so that the mean stays; x itself unless `training`."""
    if not training or probability == 0.0:
        return x
    if not _is_eager_cpu(x):
        return functional.dropout(x, probability)
    output: Tensor = _Dropout.apply(x, probability)  # type: ignore[no-untyped-call]
    return output


def add_dropout(residual: Tensor, x: Tensor, probability: float, training: bool) -> Tensor:
    """residual + dropout(x)."""
    if not training or probability == 0.0:
        return residual + x
    if not _is_eager_cpu(x):
        return residual + functional.dropout(x, probability)
    output: Tensor = _AddDropout.apply(residual, x, probability)  # type: ignore[no-untyped-call]
    return output


def _is_eager_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()
