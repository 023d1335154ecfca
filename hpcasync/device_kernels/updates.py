"""What fused_apply.c does, on a GPU: an update of a block in one pass over its memory.

The same operations in the same order, each rounded by itself (no products are fused into sums, no root or quotient is
approximated): the bits are those of fused_apply.c. Imported where there is a GPU alone (`kernel_library`).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

_BLOCK = 1024
_SUM_BLOCK = 4096


def step(parts: Sequence[torch.Tensor], arrays: Sequence[torch.Tensor | None], coefficients: Sequence[float]) -> None:
    """Adam's step along the sum of `parts`.

    Args:
        parts: [size] float32 each.
        arrays: parameters, both moments, average or None, published or None; all [size] float32, but that the last may
            be of another type, which values are rounded to.
        coefficients: those of fused_apply.c, in its order.
    """
    parameters, mean, square, average, published = arrays
    assert parameters is not None
    size = parameters.numel()
    with torch.cuda.device_of(parameters):  # type: ignore[no-untyped-call] # where Triton launches
        _step[(triton.cdiv(size, _BLOCK),)](
            tuple(parts),
            parameters,
            mean,
            square,
            parameters if average is None else average,
            parameters if published is None else published,
            size,
            *coefficients,
            NUM_PARTS=len(parts),
            HAS_AVERAGE=average is not None,
            IS_PUBLISHED=published is not None,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )


def sum_of_squares(parts: Sequence[torch.Tensor], total: torch.Tensor | None = None) -> float:
    """Of the sum of vectors, in float64; the sum is written to `total`, which may be one of them. Waits for the GPU."""
    first = parts[0]
    size = first.numel()
    num_programs = triton.cdiv(size, _SUM_BLOCK)
    squares = torch.empty(num_programs, dtype=torch.float64, device=first.device)
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        _sum_of_squares[(num_programs,)](
            tuple(parts),
            first if total is None else total,
            squares,
            size,
            NUM_PARTS=len(parts),
            IS_WRITTEN=total is not None,
            BLOCK=_SUM_BLOCK,
            enable_fp_fusion=False,
        )
    return float(squares.sum())


@triton.jit
def _sum(parts: tl.tuple, at: tl.tensor, inside: tl.tensor, NUM_PARTS: tl.constexpr) -> tl.tensor:  # noqa: N803 (Triton's constants)
    """Added up one after the other."""
    total = tl.load(parts[0] + at, mask=inside, other=0.0)
    for part in tl.static_range(1, NUM_PARTS):
        total = total + tl.load(parts[part] + at, mask=inside, other=0.0)
    return total


@triton.jit
def _step(
    parts: tl.tuple,
    parameters: tl.tensor,
    mean: tl.tensor,
    square: tl.tensor,
    average: tl.tensor,
    published: tl.tensor,
    size: tl.tensor,
    scale: tl.tensor,
    coupled_decay: tl.tensor,
    kept: tl.tensor,
    one_less_beta1: tl.tensor,
    beta2: tl.tensor,
    one_less_beta2: tl.tensor,
    mean_factor: tl.tensor,
    gradient_factor: tl.tensor,
    root_factor: tl.tensor,
    eps: tl.tensor,
    average_weight: tl.tensor,
    lookahead: tl.tensor,
    NUM_PARTS: tl.constexpr,  # noqa: N803
    HAS_AVERAGE: tl.constexpr,  # noqa: N803
    IS_PUBLISHED: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    before = tl.load(parameters + at, mask=inside)
    m = tl.load(mean + at, mask=inside)
    v = tl.load(square + at, mask=inside)
    g = scale * _sum(parts, at, inside, NUM_PARTS) + coupled_decay * before
    m = m + one_less_beta1 * (g - m)
    v = beta2 * v + one_less_beta2 * (g * g)
    denominator = root_factor * tl.sqrt_rn(v) + eps
    w = kept * before - tl.div_rn(mean_factor * m + gradient_factor * g, denominator)
    tl.store(mean + at, m, mask=inside)
    tl.store(square + at, v, mask=inside)
    tl.store(parameters + at, w, mask=inside)
    if HAS_AVERAGE:
        e = tl.load(average + at, mask=inside)
        tl.store(average + at, e + average_weight * (w - e), mask=inside)
    if IS_PUBLISHED:
        ahead = w + lookahead * (w - before)
        tl.store(published + at, ahead.to(published.dtype.element_ty), mask=inside)


@triton.jit
def _sum_of_squares(
    parts: tl.tuple,
    total: tl.tensor,
    squares: tl.tensor,
    size: tl.tensor,
    NUM_PARTS: tl.constexpr,  # noqa: N803
    IS_WRITTEN: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    program = tl.program_id(0).to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    values = _sum(parts, at, inside, NUM_PARTS)
    if IS_WRITTEN:
        tl.store(total + at, values, mask=inside)
    wide = values.to(tl.float64)
    tl.store(squares + program, tl.sum(wide * wide))
