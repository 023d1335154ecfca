"""Kernels for GPUs, in Triton, which CUDA builds of torch bring: one pass over memory, where torch makes several.

Without them torch computes the same. What uses them asks `can_use` first, and imports them only then.
"""

import functools

import torch


def can_use(device: torch.device) -> bool:
    """Whether they run there."""
    return device.type == "cuda" and not lack()


@functools.cache
def lack() -> str:
    """Why they do not run on this process's GPU; empty if they do. Compiles them, to know."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    try:
        try_all(torch.device("cuda"))
    except Exception as error:  # no Triton, one that is too old for this GPU, no compiler for its launcher, …
        return next(iter(f"{type(error).__name__}: {error}".splitlines()))
    return ""


def try_all(device: torch.device) -> None:
    """Run each on a few elements: an old GPU may lack a type, or an operation, of one of them."""
    from hpcasync.device_kernels import cross_entropy, updates

    arrays = list(torch.ones(6, 16, device=device).unbind(0))
    updates.step(arrays[:1], arrays[1:], [1.0] * 12)
    logits, target = torch.ones(1, 16, dtype=torch.bfloat16, device=device), torch.zeros(1, 1, dtype=torch.int64)
    cross_entropy.softmax_(logits, target.to(device), 1.0, *torch.ones(2, 1, 1, device=device).unbind(0), gradient=True)
    total = updates.sum_of_squares(arrays[:1])  # waits for the others, too
    if total != 16:
        raise RuntimeError(f"16 squares of one were summed to {total:g}")
