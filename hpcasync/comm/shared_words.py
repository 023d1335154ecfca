"""Control words of a job on one host, in its shared memory.

Words are loaded and stored, 64 bits in one access, with `MPI_Win_sync` for their order; all but the batch cursor are
written by one rank only. Adding is guarded by a file lock, which the kernel takes back from the dead. MPI's atomics
take ten times as long, for they lock the words of a rank, and a rank that is killed while it holds such a lock leaves
all stuck that want one of them.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from hpcasync.comm.mpi import collectively
from hpcasync.comm.shared_file import SHARED_MEMORY, make_shared_file
from hpcasync.errors import UserError


class SharedControlWindow:
    """64-bit integer words on every rank, as `comm.windows.ControlWindow` has them.

    Args:
        comm: all ranks of the job, which share one host's memory (collective).

    Raises:
        UserError: on every rank, if the ranks do not share a directory for temporary files.
    """

    def __init__(self, comm: MPI.Intracomm, num_words: int) -> None:
        item = MPI.INT64_T.Get_size()
        self._window = MPI.Win.Allocate_shared(num_words * item, item, comm=comm)
        segments = [self._window.Shared_query(rank)[0] for rank in range(comm.size)]
        # Much faster than numpy for one word.
        self._words = [memoryview(segment).cast("B").cast("q") for segment in segments]  # type: ignore[arg-type]
        self._local = np.asarray(segments[comm.rank]).view(np.int64)
        self._local[:] = 0
        self._lock = threading.Lock()
        self._file = _open_together(comm)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        comm.Barrier()

    def read(self, rank: int, word: int) -> int:
        """Atomic read; what is loaded after it is not older."""
        value = self._words[rank][word]
        self._window.Sync()
        return value

    def add(self, rank: int, word: int, amount: int) -> int:
        with self._alone():
            before = self.read(rank, word)
            self.store(rank, word, before + amount)
        return before

    def store(self, rank: int, word: int, value: int) -> None:
        """Atomic write, seen after all that was stored before it; to words that no other rank stores to."""
        self._window.Sync()
        self._words[rank][word] = value
        self._window.Sync()

    def local(self) -> NDArray[np.int64]:
        self._window.Sync()
        return self._local

    def free(self) -> None:
        os.close(self._file)
        self._words.clear()
        self._window.Unlock_all()
        self._window.Free()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other rank or thread is in here at the same time; one that dies in here is not."""
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)


def _open_together(comm: MPI.Intracomm) -> int:
    """A file without a name that all ranks have open."""
    path = ""
    if comm.rank == 0:
        descriptor, path = make_shared_file("hpcasync-lock-")
        os.close(descriptor)
    path = comm.bcast(path, root=0)

    def open_file() -> int:
        try:
            return os.open(path, os.O_RDWR)
        except OSError as error:
            raise UserError(
                f"all ranks of a host need {SHARED_MEMORY}, or a directory for temporary files that they share: "
                f"cannot open {path} ({error.strerror}); set TMPDIR to one"
            ) from error

    try:
        return collectively(comm, open_file)
    finally:
        if comm.rank == 0:
            Path(path).unlink()
