"""The machine's memory bandwidth, measured the way that the engine uses memory."""

import time
from collections.abc import Callable

import torch


def seconds_of(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Memcpy:
    """Copies between two private arrays of the size that is compared."""

    def __init__(self, num_elements: int) -> None:
        self._source = torch.ones(num_elements)
        self._target = torch.zeros(num_elements)

    def gigabytes_per_second(self) -> float:
        """Payload copied per second: half of the bytes that memory moves."""
        num_bytes = self._source.numel() * 4
        return num_bytes / seconds_of(lambda: self._target.copy_(self._source)) / 1e9


class Bandwidth:
    """Bytes read and written per second by a pass over long arrays: a[i] = b[i] + s * c[i], block after block."""

    def __init__(self, num_elements: int) -> None:
        self._arrays = [torch.ones(num_elements) for _ in range(3)]

    def gigabytes_per_second(self) -> float:
        """12 bytes an element, as STREAM counts its triad."""
        out, one, two = self._arrays
        num_bytes = out.numel() * 12
        return num_bytes / seconds_of(lambda: torch.add(one, two, alpha=2.0, out=out)) / 1e9
