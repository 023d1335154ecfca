"""The softmax of the loss: two passes over the logits, the second of which leaves their gradient in their place."""

import torch
import triton
import triton.language as tl

_BLOCK = 4096


def softmax_(
    logits: torch.Tensor,
    targets: torch.Tensor,
    target_weight: float,
    log_normalisers: torch.Tensor,
    target_logits: torch.Tensor,
    *,
    gradient: bool,
) -> None:
    """Cross entropy's parts for each row of logits, in float32 whatever their type.

    Args:
        logits: [n, V], contiguous; with `gradient` replaced by softmax(logits) - target_weight * onehot(target).
        targets: [n, 1] int64.
        target_weight: see `logits`.
        log_normalisers, target_logits: [n, 1] float32, written.
    """
    num_rows, num_pieces = logits.shape
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call] # where Triton launches
        _softmax[(num_rows,)](
            logits,
            targets,
            log_normalisers,
            target_logits,
            num_pieces,
            target_weight,
            IS_REPLACED=gradient,
            BLOCK=min(_BLOCK, triton.next_power_of_2(num_pieces)),
            num_warps=8,
        )


@triton.jit
def _softmax(
    logits: tl.tensor,
    targets: tl.tensor,
    log_normalisers: tl.tensor,
    target_logits: tl.tensor,
    num_pieces: tl.tensor,
    target_weight: tl.tensor,
    IS_REPLACED: tl.constexpr,  # noqa: N803 (Triton's constants)
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    logits += row * num_pieces
    # Read before the barriers of the sums: after them another warp may have put a gradient there.
    target_logit = tl.load(logits + target).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    # The sum of exponentials, rescaled whenever the largest logit so far changes.
    largest = float("-inf")
    total = 0.0
    for start in range(0, num_pieces, BLOCK):
        inside = start + columns < num_pieces
        values = tl.load(logits + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        before = largest
        largest = tl.maximum(largest, tl.max(values, 0))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(values - largest), 0)
    tl.store(log_normalisers + row, largest + tl.log(total))
    tl.store(target_logits + row, target_logit)
    if IS_REPLACED:
        for start in range(0, num_pieces, BLOCK):
            at = start + columns
            inside = at < num_pieces
            values = tl.load(logits + at, mask=inside, other=float("-inf")).to(tl.float32)
            difference = tl.exp(values - largest) / total - tl.where(at == target, target_weight, 0.0)
            tl.store(logits + at, difference.to(logits.dtype.element_ty), mask=inside)
