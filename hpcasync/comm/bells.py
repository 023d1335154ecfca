"""Waiting on one host without polling: a rank sleeps until another, which has changed what it waits for, rings."""

import ctypes
import itertools

from mpi4py import MPI

from hpcasync.comm import futex

# A rank looks as often as this even if nobody rings: for what is not told by a bell (a checkpoint is written, a rank
# has died). 50 looks a second take 0.2 % of a core.
LONGEST_SECONDS = 0.02
ANYTHING = -1
_NOTHING = 0
# Words of each rank, 32 bits each.
_BELL, _AWAITED = 0, 1
_NUM_WORDS = 16


class Bells:
    """A bell on every rank.

    Args:
        comm: all ranks of the job, which share one host's memory (collective).
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._window = MPI.Win.Allocate_shared(4 * _NUM_WORDS, 4, comm=comm)
        segments = [self._window.Shared_query(rank)[0] for rank in range(comm.size)]
        self._words = [memoryview(segment).cast("B").cast("i") for segment in segments]  # type: ignore[arg-type]
        self._addresses = [ctypes.c_void_p(segment.address) for segment in segments]
        self._rank = comm.rank
        # Of all ranks no two ring with the same number: every ring changes the word.
        self._numbers = itertools.count(comm.size + comm.rank, comm.size)
        self._words[comm.rank][_BELL] = self._words[comm.rank][_AWAITED] = 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        comm.Barrier()

    def ring(self, rank: int, topic: int = ANYTHING) -> None:
        """What a rank may be waiting for has changed; wake it, unless it waits for another topic."""
        words = self._words[rank]
        words[_BELL] = next(self._numbers) & 0x7FFFFFFF
        self._window.Sync()  # the bell before the look at who sleeps
        awaited = words[_AWAITED]
        if awaited != _NOTHING and (topic == ANYTHING or awaited in (ANYTHING, topic)):
            futex.wake(self._addresses[rank])

    def heard(self) -> int:
        """What this rank's bell says now: for `wait`. To be asked before the look at what is waited for."""
        bell = self._words[self._rank][_BELL]
        self._window.Sync()
        return bell

    def wait(self, heard: int, topic: int = ANYTHING) -> int:
        """Sleep until this rank is rung, if it has not been since the bell said `heard`.

        One thread of a rank at a time; of two the one may sleep for `LONGEST_SECONDS` although it is rung.

        Returns:
            what the bell says now.
        """
        words = self._words[self._rank]
        words[_AWAITED] = topic
        self._window.Sync()  # before the look at the bell
        if words[_BELL] == heard:
            futex.sleep_while(self._addresses[self._rank], heard, LONGEST_SECONDS)
        words[_AWAITED] = _NOTHING
        return self.heard()

    def free(self) -> None:
        """Free the window (collective)."""
        self._words.clear()
        self._window.Unlock_all()
        self._window.Free()


class BellWait:
    """Waits in a loop of looks, as `comm.waiting.Backoff`; to be made before the first look.

    Args:
        bells: of all ranks.
        topic: what is waited for.
    """

    def __init__(self, bells: Bells, topic: int = ANYTHING) -> None:
        self._bells = bells
        self._topic = topic
        self._heard = bells.heard()

    def reset(self) -> None:
        """Nothing: a bell is never slow."""

    def wait(self, longest_seconds: float | None = None) -> None:
        """Wait until something may have changed since the last wait began or ended."""
        self._heard = self._bells.wait(self._heard, self._topic)
