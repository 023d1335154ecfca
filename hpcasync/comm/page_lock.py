"""Host memory that a GPU copies to and from directly: its pages must not move."""

import mmap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch


class PageLock:
    """Holds memory in place for the copies of this process's GPU: every process that copies needs one of its own.

    Args:
        segments: uint8, none of them empty; others may have allocated them.
        device: the GPU.

    Attributes:
        refusal: why CUDA cannot lock all of it: then none is locked; empty: it is.
    """

    def __init__(self, segments: Iterable[torch.Tensor], device: torch.device) -> None:
        self.refusal = ""
        self._locked: list[int] = []
        cuda = _cuda()
        for start, stop in page_ranges([(segment.data_ptr(), segment.numel()) for segment in segments]):
            if int(code := cuda.cudaHostRegister(start, stop - start, 0)):
                self.free()
                # CUDA remembers the error, and torch would take it for that of the kernel that it starts next.
                with suppress(RuntimeError):
                    torch.zeros(1, device=device)
                self.refusal = f"CUDA locks no {stop - start:,} bytes: {cuda.cudaGetErrorString(code)}"
                return
            self._locked.append(start)

    def free(self) -> None:
        """To be called before the memory is given back."""
        for start in self._locked:
            _cuda().cudaHostUnregister(start)
        self._locked.clear()


def page_ranges(segments: Iterable[tuple[int, int]], page_bytes: int = mmap.PAGESIZE) -> list[tuple[int, int]]:
    """The pages, [start, stop), of memory (address, bytes): each once, for CUDA locks no page twice.

    Ranks' segments of a shared window follow on each other wherever they end.
    """
    ranges: list[tuple[int, int]] = []
    for address, num_bytes in sorted(segments):
        start = address // page_bytes * page_bytes
        stop = -(-(address + num_bytes) // page_bytes) * page_bytes
        if ranges and start < ranges[-1][1]:
            start, stop = ranges[-1][0], max(stop, ranges.pop()[1])
        ranges.append((start, stop))
    return ranges


def describe_page_locks(refusals: Mapping[int, str]) -> str:
    """For people, in the middle of a sentence.

    Args:
        refusals: for each rank with a GPU, why what it copies to and from cannot be locked, or nothing.
    """
    refused = [rank for rank, why in refusals.items() if why]
    if not refused:
        return ", page-locked for GPUs" if refusals else ""
    ranks = ", ".join(map(str, refused))
    return f", not page-locked for rank {ranks}, whose GPU copies by way of other host memory: {refusals[refused[0]]}"


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
