"""Copies to and from a device, on a stream of their own beside its computation."""

from typing import Any

import torch


class CopyStream:
    """Copies within a device's memory, to other devices' and to page-locked memory of the host, and back.

    On a CPU, whose streams do nothing, the same calls copy at once.

    Args:
        device: whose stream it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream(**({} if device.type == "cpu" else {"device": device}))

    def copy(self, out: torch.Tensor, values: torch.Tensor) -> None:
        """Begin to copy what no stream is computing any more; what has another type is converted on the device."""
        with self._module.stream(self._stream):
            out.copy_(values, non_blocking=True)  # with False torch converts on the host

    def wait(self) -> None:
        """Until all copies have been made."""
        self._wait_for(self._stream)

    def wait_for_computation(self) -> None:
        """Until what this thread has had computed on the device is done."""
        self._wait_for(self._module.current_stream(self._device))

    def _wait_for(self, stream: Any) -> None:
        reached = self._module.Event()
        reached.record(stream)
        reached.synchronize()
