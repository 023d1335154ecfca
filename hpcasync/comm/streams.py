"""Long messages between hosts, in pieces, sent and received without waiting.

Two-sided messages, because Open MPI's `MPI_Get` over TCP moves every byte both ways: measured, 20 MB got through a link
made the origin send 20 MB too, and took twice the line's time (5.0.11, btl/tcp).
"""

from collections.abc import Callable
from typing import Any

import torch
from mpi4py import MPI

# Measured over 1 gbit/s: pieces of 64 KiB reached 0.88 of the line, of 1 MiB and more 0.93.
PIECE_BYTES = 4 << 20
_MAX_IN_FLIGHT = 4


class OutgoingStream:
    """Sends `num_bytes` to a rank.

    Args:
        piece: gives bytes [start, stop) as contiguous uint8 memory, which must be computed and stay as it is from then
            on; of a GPU only where MPI takes that (`comm.gpu_memory`).
    """

    def __init__(
        self, comm: MPI.Intracomm, rank: int, tag: int, num_bytes: int, piece: Callable[[int, int], torch.Tensor]
    ) -> None:
        self._comm = comm
        self._rank = rank
        self._tag = tag
        self._num_bytes = num_bytes
        self._piece = piece
        self._next = 0
        self._in_flight: list[MPI.Request] = []

    def advance(self) -> bool:
        """Send what may be sent now; returns whether everything has left and its memory may change again."""
        self._in_flight = [request for request in self._in_flight if not request.Test()]
        while self._next < self._num_bytes and len(self._in_flight) < _MAX_IN_FLIGHT:
            stop = min(self._next + PIECE_BYTES, self._num_bytes)
            memory = _as_memory(self._piece(self._next, stop))
            self._in_flight.append(self._comm.Isend([memory, MPI.BYTE], self._rank, self._tag))
            self._next = stop
        return self._next == self._num_bytes and not self._in_flight


class IncomingStream:
    """Receives what an `OutgoingStream` sends.

    Args:
        comm, rank, tag: as there; `rank` is who sends.
        out: contiguous memory of as many bytes as are sent; of a GPU as there.
        arrived: called for every piece with its first and last byte + 1, in order.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        rank: int,
        tag: int,
        out: torch.Tensor,
        arrived: Callable[[int, int], None] = lambda start, stop: None,
    ) -> None:
        self._arrived = arrived
        raw = out.view(torch.uint8)
        bounds = [(start, min(start + PIECE_BYTES, raw.numel())) for start in range(0, raw.numel(), PIECE_BYTES)]
        self._expected = [
            (comm.Irecv([_as_memory(raw[start:stop]), MPI.BYTE], rank, tag), start, stop) for start, stop in bounds
        ]

    def advance(self) -> bool:
        """Take what has arrived; returns whether that was all."""
        while self._expected and self._expected[0][0].Test():
            _, start, stop = self._expected.pop(0)
            self._arrived(start, stop)
        return not self._expected


def _as_memory(values: torch.Tensor) -> Any:
    return values.numpy() if values.device.type == "cpu" else values
