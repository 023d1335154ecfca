"""Vectors between a GPU and the host: through page-locked memory, on streams of their own.

The stream that computes waits for no copy. A copy to the host waits for what had been computed when it was asked for;
the thread that needs the values waits for the copy. On a CPU, whose streams do nothing, the same calls copy at once.
"""

from collections.abc import Callable
from typing import Any

import torch

from hpcasync.comm.shards import Shard


class DeviceCopy:
    """Copies between vectors on one device and a host vector beside each of them.

    The vectors must live as long as this does: their memory is known here by its address.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device)
        arguments = {} if device.type == "cpu" else {"device": device}
        self._to_host_stream = self._module.Stream(**arguments)
        self._to_device_stream = self._module.Stream(**arguments)
        self._host: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def host(self, vector: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The host vector beside this one, of its type unless told; what it holds is up to the copies."""
        key = vector.data_ptr(), dtype or vector.dtype
        if key not in self._host:
            is_paged = self._device.type == "cpu"
            self._host[key] = torch.empty(vector.shape, dtype=key[1], pin_memory=not is_paged)
        return self._host[key]

    def to_host(self, vector: torch.Tensor, part: Shard, dtype: torch.dtype | None = None) -> Callable[[], None]:
        """Begin to copy elements [start, stop) as they are after what this thread has had computed so far.

        What is to arrive in another type is converted before it is copied: less has to travel.

        Returns:
            waits for the copy, in any thread.
        """
        host, computed, copied = self.host(vector, dtype), self._computed(), self._module.Event()
        self._to_host_stream.wait_event(computed)
        with self._module.stream(self._to_host_stream):
            values = vector[part.start : part.stop].to(host.dtype)
            host[part.start : part.stop].copy_(values, non_blocking=True)
        copied.record(self._to_host_stream)
        wait: Callable[[], None] = copied.synchronize
        return wait

    def when_computed(self) -> Callable[[], None]:
        """Waits, in any thread, until what this thread has had computed so far is done."""
        wait: Callable[[], None] = self._computed().synchronize
        return wait

    def to_device(self, vector: torch.Tensor, part: Shard) -> None:
        """Copy elements [start, stop) of the host vector beside this one to it; complete on return.

        No computation may be using the vector (see `wait_for_computation`).
        """
        copied = self._module.Event()
        with self._module.stream(self._to_device_stream):
            vector[part.start : part.stop].copy_(self.host(vector)[part.start : part.stop], non_blocking=True)
        copied.record(self._to_device_stream)
        copied.synchronize()

    def wait_for_computation(self) -> None:
        """Wait until what this thread has had computed so far is done."""
        self._computed().synchronize()

    def _computed(self) -> Any:
        event = self._module.Event()
        event.record(self._module.current_stream(self._device))
        return event
