"""A block's update in one pass over memory: sum, scale, Adam's step, averaged parameters, lookahead, publication.

Torch makes a pass of each (`BlockUpdate.make`). The functions are those of fused_apply.c, called without Python's lock.
Results do not depend on where an element lies in a block, and hardly on which of the two ways it was made: torch's
rounds the last bit elsewhere.
"""

import ctypes
from collections.abc import Sequence

import torch

from hpcasync.ps.server.adam import EagerAdam, EagerAdamW, NesterovAdam, NesterovAdamW
from hpcasync.ps.server.block_update import BlockUpdate
from hpcasync.ps.server.kernel_library import load

_HAS_NUMERATOR: dict[type[torch.optim.Optimizer], bool] = {
    **dict.fromkeys((torch.optim.Adam, torch.optim.AdamW, EagerAdam, EagerAdamW), False),
    **dict.fromkeys((NesterovAdam, NesterovAdamW), True),
}


class _Coefficients(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            *("scale", "coupled_decay", "kept", "one_less_beta1", "beta2", "one_less_beta2", "mean_factor"),
            *("gradient_factor", "root_factor", "eps", "average_weight", "lookahead"),
        )
    ]


def is_available() -> bool:
    """Whether there is the library."""
    return load()[0] is not None


def can_make(update: BlockUpdate, optimizer: torch.optim.Optimizer, block: torch.Tensor) -> bool:
    """Whether `make` does what `update.make` does."""
    (group,) = optimizer.param_groups
    is_adam = type(optimizer) in _HAS_NUMERATOR and not (group["amsgrad"] or group["maximize"])
    return is_adam and all(map(is_plain, (block, *update.parts)))


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is an array that C can read."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def sum_of_squares(parts: Sequence[torch.Tensor], total: torch.Tensor | None = None) -> float:
    """Of the sum of vectors, in float64; the sum is written to `total`, which may be one of them."""
    library, _ = load()
    assert library is not None
    size = parts[0].numel()
    return float(library.hpcasync_sum(*_pointers(parts), ctypes.c_size_t(size), _pointer(total, size)))


def make(update: BlockUpdate, optimizer: torch.optim.Optimizer, block: torch.Tensor) -> None:
    """What `update.make` does, if `can_make`."""
    library, _ = load()
    assert library is not None
    state = optimizer.state[block]
    if not state:  # as torch begins
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(block), torch.zeros_like(block)
    state["step"] += 1
    coefficients = _coefficients(update, optimizer, int(state["step"]))
    published = update.published
    written = published if published is None or is_plain(published) else update.scratch
    arrays = (block, state["exp_avg"], state["exp_avg_sq"], update.average, written)
    size = block.numel()
    pointers = [_pointer(array, size) for array in arrays]
    library.hpcasync_step(*_pointers(update.parts), ctypes.c_size_t(size), *pointers, ctypes.byref(coefficients))
    if published is not None and written is not published:
        published.copy_(update.scratch)


def _coefficients(update: BlockUpdate, optimizer: torch.optim.Optimizer, num_steps: int) -> _Coefficients:
    (group,) = optimizer.param_groups
    (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
    is_decoupled = isinstance(optimizer, torch.optim.AdamW)
    has_numerator = _HAS_NUMERATOR[type(optimizer)]
    return _Coefficients(
        scale=update.scale,
        coupled_decay=0.0 if is_decoupled else decay,
        kept=1 - rate * decay if is_decoupled else 1.0,
        one_less_beta1=1 - beta1,
        beta2=beta2,
        one_less_beta2=1 - beta2,
        mean_factor=rate / (1 - beta1**num_steps) * (beta1 if has_numerator else 1.0),
        gradient_factor=rate * (1 - beta1) if has_numerator else 0.0,
        root_factor=(1 - beta2**num_steps) ** -0.5,
        eps=group["eps"],
        average_weight=update.average_weight,
        lookahead=update.lookahead,
    )


def _pointer(array: torch.Tensor | None, size: int) -> ctypes.c_void_p:
    assert array is None or (is_plain(array) and array.numel() == size)
    return ctypes.c_void_p(None if array is None else array.data_ptr())


def _pointers(parts: Sequence[torch.Tensor]) -> tuple[ctypes.Array[ctypes.c_void_p], ctypes.c_int]:
    size = parts[0].numel()
    return (ctypes.c_void_p * len(parts))(*(_pointer(part, size) for part in parts)), ctypes.c_int(len(parts))
