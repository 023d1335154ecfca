"""A block's update in one pass over memory: sum, scale, Adam's step, averaged parameters, lookahead, publication.

Torch makes a pass of each (`BlockUpdate.make`). On the CPU the functions are those of fused_apply.c, called without
Python's lock; on a GPU the same in Triton (`device_kernels.updates`). Results do not depend on where an element lies in
a block, and hardly on whether torch made it, which rounds the last bit elsewhere.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from hpcasync import device_kernels
from hpcasync.ps.server.adam import EagerAdam, EagerAdamW, NesterovAdam, NesterovAdamW
from hpcasync.ps.server.block_update import BlockUpdate, publish
from hpcasync.ps.server.kernel_library import load

_HAS_NUMERATOR: dict[type[torch.optim.Optimizer], bool] = {
    **dict.fromkeys((torch.optim.Adam, torch.optim.AdamW, EagerAdam, EagerAdamW), False),
    **dict.fromkeys((NesterovAdam, NesterovAdamW), True),
}
_CPU = torch.device("cpu")


class _Coefficients(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            *("scale", "coupled_decay", "kept", "one_less_beta1", "beta2", "one_less_beta2", "mean_factor"),
            *("gradient_factor", "root_factor", "eps", "average_weight", "lookahead"),
        )
    ]


def is_available(device: torch.device = _CPU) -> bool:
    """Whether blocks there can be updated so."""
    return load()[0] is not None if _is_host(device) else device_kernels.can_use(device)


def can_make(update: BlockUpdate, optimizer: torch.optim.Optimizer, block: torch.Tensor) -> bool:
    """Whether `make` does what `update.make` does."""
    (group,) = optimizer.param_groups
    is_adam = type(optimizer) in _HAS_NUMERATOR and not (group["amsgrad"] or group["maximize"])
    return is_adam and all(is_plain(tensor, block.device) for tensor in (block, *update.parts))


def is_plain(tensor: torch.Tensor, device: torch.device = _CPU) -> bool:
    """Whether it is an array that a kernel on that device can read."""
    return tensor.dtype == torch.float32 and tensor.device == device and tensor.is_contiguous()


def sum_of_squares(parts: Sequence[torch.Tensor], total: torch.Tensor | None = None) -> float:
    """Of the sum of vectors, in float64; the sum is written to `total`, which may be one of them."""
    if not _is_host(parts[0].device):
        return float(_device_updates().sum_of_squares(parts, total))
    library, _ = load()
    assert library is not None
    size = parts[0].numel()
    return float(library.hpcasync_sum(*_pointers(parts), ctypes.c_size_t(size), _pointer(total, size)))


def make(update: BlockUpdate, optimizer: torch.optim.Optimizer, block: torch.Tensor) -> None:
    """What `update.make` does, if `can_make`."""
    state = optimizer.state[block]
    if not state:  # as torch begins
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(block), torch.zeros_like(block)
    # Torch counts on the GPU, which would have to be waited for.
    state["step"] = state["step"].cpu() + 1
    coefficients = _coefficients(update, optimizer, int(state["step"]))
    published = update.published
    written = published if published is None or _can_publish(published, block.device) else update.scratch
    _step(update.parts, (block, state["exp_avg"], state["exp_avg_sq"], update.average, written), coefficients)
    if published is not None and written is not published:
        publish(published, update.scratch)


def _can_publish(published: torch.Tensor, device: torch.device) -> bool:
    if _is_host(device):
        return is_plain(published)
    return published.device == device and published.is_floating_point() and published.is_contiguous()


def _is_host(device: torch.device) -> bool:
    return device.type == "cpu"


def _step(parts: Sequence[torch.Tensor], arrays: Sequence[torch.Tensor | None], coefficients: dict[str, float]) -> None:
    if not _is_host(parts[0].device):
        _device_updates().step(parts, arrays, list(map(float, coefficients.values())))
        return
    library, _ = load()
    assert library is not None
    size = parts[0].numel()
    pointers = [_pointer(array, size) for array in arrays]
    given = ctypes.byref(_Coefficients(**coefficients))
    library.hpcasync_step(*_pointers(parts), ctypes.c_size_t(size), *pointers, given)


def _device_updates() -> Any:
    """Their module, which needs Triton."""
    from hpcasync.device_kernels import updates

    return updates


def _coefficients(update: BlockUpdate, optimizer: torch.optim.Optimizer, num_steps: int) -> dict[str, float]:
    """Those of fused_apply.c, in its order."""
    (group,) = optimizer.param_groups
    (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
    is_decoupled = isinstance(optimizer, torch.optim.AdamW)
    has_numerator = _HAS_NUMERATOR[type(optimizer)]
    return dict(
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
