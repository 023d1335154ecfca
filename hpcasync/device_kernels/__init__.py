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
    """Why they do not run on this process's GPU; empty if they do. Compiles one, to know."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    try:
        from hpcasync.device_kernels import updates

        updates.sum_of_squares([torch.ones(1, device="cuda")])
    except Exception as error:  # no Triton, one that is too old for this, no compiler for its launcher, …
        return next(iter(f"{type(error).__name__}: {error}".splitlines()))
    return ""
