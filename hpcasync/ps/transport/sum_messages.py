"""Sums of a shard's gradients on their way from other hosts to the server that owns the shard."""

from collections.abc import Callable, Mapping, Sequence

import torch
from mpi4py import MPI

from hpcasync.comm.streams import IncomingStream, OutgoingStream
from hpcasync.comm.waiting import Backoff

_TAG = 4


class SumMessages:
    """What one server sends and receives of them.

    Sums on a GPU leave it as they are where MPI takes that; else they are staged in page-locked memory of the host.

    Args:
        is_direct: MPI takes memory of the device.
    """

    def __init__(self, comm: MPI.Intracomm, dtype: torch.dtype, device: torch.device, *, is_direct: bool) -> None:
        self._comm = comm
        self._dtype = dtype
        self._device = device
        self._is_direct = is_direct
        self._memory: dict[tuple[int, bool], torch.Tensor] = {}

    def exchange(
        self, outgoing: Mapping[int, torch.Tensor], sources: Sequence[int], size: int, make_progress: Callable[[], None]
    ) -> list[torch.Tensor]:
        """Send float32 sums to their owners' ranks, and wait for as many as there are sources.

        Args:
            outgoing: by rank.
            sources: ranks that send a sum of this server's shard now.
            make_progress: called while this waits.

        Returns:
            those of the sources, in their order, on the device; good until the next call.
        """
        arriving = [self._memory_for(rank, size, is_sent=False) for rank in sources]
        leaving = {rank: self._staged(rank, total) for rank, total in outgoing.items()}
        self._wait_for_device()
        streams: list[IncomingStream | OutgoingStream] = [
            IncomingStream(self._comm, rank, _TAG, memory) for rank, memory in zip(sources, arriving, strict=True)
        ]
        streams += [self._send(rank, memory) for rank, memory in leaving.items()]
        waiting = Backoff()
        while streams := [stream for stream in streams if not stream.advance()]:
            make_progress()
            waiting.wait()
        return [memory.to(self._device) for memory in arriving]

    def _staged(self, rank: int, total: torch.Tensor) -> torch.Tensor:
        """Where a sum leaves from; converted where it is: less has to be copied."""
        if self._is_direct and self._dtype == total.dtype:
            return total
        return self._memory_for(rank, total.numel(), is_sent=True).copy_(total.to(self._dtype))

    def _send(self, rank: int, memory: torch.Tensor) -> OutgoingStream:
        raw = memory.view(torch.uint8)
        return OutgoingStream(self._comm, rank, _TAG, raw.numel(), lambda start, stop: raw[start:stop])

    def _memory_for(self, rank: int, size: int, *, is_sent: bool) -> torch.Tensor:
        key = rank, is_sent
        if key not in self._memory:
            is_staged = self._device.type == "cuda" and not self._is_direct
            device = self._device if self._is_direct else torch.device("cpu")
            self._memory[key] = torch.empty(size, dtype=self._dtype, device=device, pin_memory=is_staged)
        return self._memory[key]

    def _wait_for_device(self) -> None:
        """MPI looks at no stream: what it sends must be there, and nobody else at work where it receives."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
