"""Orders from the coordinator to the other servers: small records of fixed size, one message each.

MPI keeps messages between two ranks in order.
"""

import struct

from mpi4py import MPI

from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.ps.protocol.orders import Kind, Order

_ORDER_TAG = 1
_REQUEST_TAG = 3
_RECORD = struct.Struct("=5q2d")


class OrderSender:
    """The coordinator's side.

    Args:
        comm: of the servers, the coordinator first.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self._followers = range(1, comm.size)
        self._record = bytearray(_RECORD.size)
        self._under_way: list[MPI.Request] = []

    def send(self, order: Order, request: SaveRequest | None = None) -> None:
        """Send an order to all followers without waiting for them; `request` with an order to save."""
        MPI.Request.Waitall(self._under_way)
        _RECORD.pack_into(self._record, 0, *order)
        self._under_way = [self._comm.Isend([self._record, MPI.BYTE], to, _ORDER_TAG) for to in self._followers]
        if request is not None:
            # Seldom, and of any length: not part of the record.
            self._under_way += [self._comm.isend(request, to, _REQUEST_TAG) for to in self._followers]

    def advance(self) -> None:
        """Let MPI send what has not left yet."""
        if self._under_way and MPI.Request.Testall(self._under_way):
            self._under_way = []

    def wait(self) -> None:
        MPI.Request.Waitall(self._under_way)


class OrderReceiver:
    """A follower's side."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm
        self._record = bytearray(_RECORD.size)

    def poll(self) -> tuple[Order, SaveRequest | None] | None:
        """The next order, if one has arrived, and what is to be saved, if it is to save."""
        # Open MPI takes in what has come after it has looked: the first look does not see it.
        if not (self._comm.Iprobe(0, _ORDER_TAG) or self._comm.Iprobe(0, _ORDER_TAG)):
            return None
        self._comm.Recv([self._record, MPI.BYTE], 0, _ORDER_TAG)
        kind, *rest = _RECORD.unpack(self._record)
        order = Order(Kind(kind), *rest)
        return order, self._comm.recv(source=0, tag=_REQUEST_TAG) if order.kind is Kind.SAVE else None
