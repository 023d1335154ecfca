"""RMA windows: the only place where lock epochs, flushes and atomics appear.

Every window is locked shared on all targets for its whole life (passive target). Memory on the origin's own node is
reached by load and store, other nodes by Put; what is read from there is sent by its owner (`comm.streams`).
"""

import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray

from hpcasync.comm.copy_stream import CopyStream
from hpcasync.comm.mpi import ranks_of_node
from hpcasync.comm.page_lock import PageLock
from hpcasync.comm.waiting import Backoff

# Open MPI copies all that is put at once before much of it leaves: over 1 gbit/s it reached 0.89 of the line, and took
# as much memory again. Pieces of which only some are under way reached 0.94.
PIECE_BYTES = 2 << 20
_MAX_IN_FLIGHT = 4


class ControlWindow:
    """64-bit integer words on every rank, read and changed atomically by all.

    Args:
        num_words: words on this rank; may differ between ranks.
    """

    def __init__(self, comm: MPI.Intracomm, num_words: int) -> None:
        item = MPI.INT64_T.Get_size()
        self._window = MPI.Win.Allocate(num_words * item, item, comm=comm)
        self._local = np.asarray(self._window.tomemory()).view(np.int64)
        self._local[:] = 0
        # A worker's transfers may run in a thread beside its computation, which draws batches.
        self._lock = threading.Lock()
        self._operand = np.zeros(1, np.int64)
        self._result = np.zeros(1, np.int64)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        comm.Barrier()

    def read(self, rank: int, word: int) -> int:
        return self._fetch(rank, word, 0, MPI.NO_OP)

    def add(self, rank: int, word: int, amount: int) -> int:
        """Atomic addition; returns the value before it."""
        return self._fetch(rank, word, amount, MPI.SUM)

    def store(self, rank: int, word: int, value: int) -> None:
        """Atomic write. All transfers to `rank` made before it through other windows must have been flushed."""
        self._fetch(rank, word, value, MPI.REPLACE)

    def local(self) -> NDArray[np.int64]:
        """This rank's own words as memory, after making other ranks' atomic writes visible. Read only."""
        self._window.Sync()
        return self._local

    def free(self) -> None:
        self._window.Unlock_all()
        self._window.Free()

    def _fetch(self, rank: int, word: int, value: int, operation: MPI.Op) -> int:
        with self._lock:
            self._operand[0] = value
            self._window.Fetch_and_op(self._operand, self._result, rank, word, operation)
            self._window.Flush(rank)
            return int(self._result[0])


class DataWindow:
    """Bytes on every rank: shared memory within a node, and an RMA window where the job spans several nodes.

    Args:
        node_comm: the ranks of `comm` that share this node's memory.
        num_bytes: bytes exposed by this rank; may be 0.

    Attributes:
        device: where the bytes are.
    """

    device = torch.device("cpu")

    def __init__(self, comm: MPI.Intracomm, node_comm: MPI.Intracomm, num_bytes: int) -> None:
        self._shared = MPI.Win.Allocate_shared(num_bytes, 1, comm=node_comm)
        self._node_ranks = ranks_of_node(comm, node_comm)
        self._memory: dict[int, torch.Tensor] = {}
        self._in_flight: dict[int, deque[MPI.Request]] = {}
        self._page_lock: PageLock | None = None
        self._copies: CopyStream | None = None
        own, _ = self._shared.Shared_query(node_comm.rank)
        self._remote = MPI.Win.Create(own, 1, comm=comm) if node_comm.size < comm.size else None
        for window in self._windows():
            window.Lock_all(MPI.MODE_NOCHECK)

    def is_local(self, rank: int) -> bool:
        """Whether `rank`'s bytes can be reached by load and store."""
        return rank in self._node_ranks

    def lock_pages(self, ranks: Sequence[int], device: torch.device) -> str | None:
        """Page-lock the memory of these ranks of this node for copies by this rank's device.

        Returns:
            why it cannot be locked, or nothing; None: there is nothing to lock, or no GPU.
        """
        if device.type == "cpu" or not ranks:
            return None
        memory = [self.memory(rank) for rank in ranks]
        self._page_lock = PageLock([part for part in memory if part.numel()], device)
        if not self._page_lock.refusal:
            self._copies = CopyStream(device)
        return self._page_lock.refusal

    def reaches(self, device: torch.device) -> bool:
        """Whether a device's vectors can be written to ranks of this node, and read from there, as they are."""
        return device.type == "cpu" or self._copies is not None

    def memory(self, rank: int) -> torch.Tensor:
        """The bytes of a rank on this node, uint8, as memory."""
        if rank not in self._memory:
            buffer, _ = self._shared.Shared_query(self._node_ranks[rank])
            # An empty segment has no address to wrap.
            self._memory[rank] = (
                torch.frombuffer(buffer, dtype=torch.uint8) if len(buffer) else torch.empty(0, dtype=torch.uint8)
            )
        return self._memory[rank]

    def write(self, rank: int, offset: int, values: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Copy a contiguous tensor to `offset` bytes into `rank`'s memory; complete after `flush`.

        Until then the tensor must stay as it is. Waits while as much as is good for the line is under way. Within the
        node values can be converted on the way, to `dtype`, and be a GPU's that `reaches` them, where no stream
        computes them any more.
        """
        dtype = values.dtype if dtype is None else dtype
        num_bytes = values.numel() * dtype.itemsize
        if self.is_local(rank):
            self._copy(self.memory(rank)[offset : offset + num_bytes].view(dtype), values)
            return
        assert self._remote is not None and dtype == values.dtype
        raw = values.view(torch.uint8).numpy()
        for start in range(0, num_bytes, PIECE_BYTES):
            piece = raw[start : start + PIECE_BYTES]
            self._wait(rank, _MAX_IN_FLIGHT - 1)
            put = self._remote.Rput([piece, MPI.BYTE], rank, (offset + start, piece.size, MPI.BYTE))
            self._in_flight.setdefault(rank, deque()).append(put)

    def read(self, rank: int, offset: int, out: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Copy from `offset` bytes into the memory of `rank`, on this node, to a contiguous tensor; complete on return.

        `dtype` is that of the values there, where it is not `out`'s: they are converted on the way.
        """
        dtype = out.dtype if dtype is None else dtype
        self._shared.Sync()
        self._copy(out, self.memory(rank)[offset : offset + out.numel() * dtype.itemsize].view(dtype))
        self._complete_copies()
        self._shared.Sync()  # an atomic read made after this is made after the loads

    def flush(self, rank: int) -> None:
        """Complete all writes to `rank`, so that an atomic write made after this is seen after the data."""
        self._complete_copies()
        if self.is_local(rank):
            self._shared.Sync()
        else:
            assert self._remote is not None
            self._wait(rank, 0)
            self._remote.Flush(rank)

    def sync(self) -> None:
        """Make others' completed writes to this rank's memory visible to loads, and own stores to others."""
        for window in self._windows():
            window.Sync()

    def free(self) -> None:
        """Free the windows (collective). Tensors got from `memory` must not be used after it."""
        if self._page_lock is not None:
            self._page_lock.free()
        self._memory.clear()
        for window in reversed(self._windows()):
            window.Unlock_all()
            window.Free()

    def _copy(self, out: torch.Tensor, values: torch.Tensor) -> None:
        if self._copies is None:
            out.copy_(values)
        else:
            self._copies.copy(out, values)

    def _complete_copies(self) -> None:
        if self._copies is not None:
            self._copies.wait()

    def _wait(self, rank: int, num_left: int) -> None:
        """Wait until at most so many Puts to `rank` are under way, without keeping a core busy."""
        in_flight = self._in_flight.get(rank, deque())
        backoff = Backoff()
        while len(in_flight) > num_left:
            if in_flight[0].Test():
                in_flight.popleft()
                backoff.reset()
            else:
                backoff.wait()

    def _windows(self) -> list[MPI.Win]:
        return [self._shared] if self._remote is None else [self._shared, self._remote]
