"""Host memory that a GPU copies from directly: MPI puts there what other hosts send, and its pages must not move."""

from typing import Any

import torch

from hpcasync.errors import UserError


class PageLock:
    """Holds memory of this process in place for its GPU's copies; does nothing for a CPU.

    Args:
        memory: that others may have allocated.
        device: that copies from it.

    Raises:
        UserError: CUDA cannot lock so much.
    """

    def __init__(self, memory: torch.Tensor, device: torch.device) -> None:
        self._memory = memory if device.type == "cuda" and memory.numel() else None
        if self._memory is not None:
            address, num_bytes = self._memory.data_ptr(), self._memory.numel()
            if code := int(_cuda().cudaHostRegister(address, num_bytes, 0)):
                raise UserError(
                    f"CUDA cannot lock {num_bytes:,} bytes of host memory for what other hosts send (error {code}): "
                    "raise the limit of locked memory (`ulimit -l`), or use exchange.window=mpi"
                )

    def free(self) -> None:
        """To be called before the memory is given back."""
        if self._memory is not None:
            _cuda().cudaHostUnregister(self._memory.data_ptr())


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
