"""Waiting on one host without polling: a rank sleeps until another, which has changed what it waits for, wakes it."""

import ctypes
import itertools

from mpi4py import MPI

from hpcasync.comm import futex

# A rank looks as often as this even if nobody wakes it: for what is not told so (a checkpoint is written, a rank
# has died). 50 looks a second take 0.2 % of a core.
LONGEST_SECONDS = 0.02
ANYTHING = -1
_NOTHING = 0
# Words of each rank, 32 bits each.
_WAKE_UP, _AWAITED = 0, 1
_NUM_WORDS = 16


class WakeUps:
    """A word on every rank that it sleeps on."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._window = MPI.Win.Allocate_shared(4 * _NUM_WORDS, 4, comm=comm)
        segments = [self._window.Shared_query(rank)[0] for rank in range(comm.size)]
        self._words = [memoryview(segment).cast("B").cast("i") for segment in segments]  # type: ignore[arg-type]
        self._addresses = [ctypes.c_void_p(segment.address) for segment in segments]
        self._rank = comm.rank
        # Of all ranks no two write the same number: every wake-up changes the word.
        self._numbers = itertools.count(comm.size + comm.rank, comm.size)
        self._words[comm.rank][_WAKE_UP] = self._words[comm.rank][_AWAITED] = 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        comm.Barrier()

    def wake(self, rank: int, topic: int = ANYTHING) -> None:
        """What a rank may be waiting for has changed; wake it, unless it waits for another topic."""
        words = self._words[rank]
        words[_WAKE_UP] = next(self._numbers) & 0x7FFFFFFF
        self._window.Sync()  # the number before the look at who sleeps
        awaited = words[_AWAITED]
        if awaited != _NOTHING and (topic == ANYTHING or awaited in (ANYTHING, topic)):
            futex.wake(self._addresses[rank])

    def newest(self) -> int:
        """The newest wake-up of this rank: for `wait`. To be asked before the look at what is waited for."""
        number = self._words[self._rank][_WAKE_UP]
        self._window.Sync()
        return number

    def wait(self, seen: int, topic: int = ANYTHING) -> int:
        """Sleep until this rank is woken, if it has not been since `newest` was `seen`.

        One thread of a rank at a time; of two the one may sleep for `LONGEST_SECONDS` although it is woken.

        Returns:
            the newest wake-up.
        """
        words = self._words[self._rank]
        words[_AWAITED] = topic
        self._window.Sync()  # before the look at the number
        if words[_WAKE_UP] == seen:
            futex.sleep_while(self._addresses[self._rank], seen, LONGEST_SECONDS)
        words[_AWAITED] = _NOTHING
        return self.newest()

    def free(self) -> None:
        self._words.clear()
        self._window.Unlock_all()
        self._window.Free()


class WakeUpWait:
    """Waits in a loop of looks, as `comm.waiting.Backoff`; to be made before the first look."""

    def __init__(self, wake_ups: WakeUps, topic: int = ANYTHING) -> None:
        self._wake_ups = wake_ups
        self._topic = topic
        self._seen = wake_ups.newest()

    def reset(self) -> None:
        """Nothing to reset: unlike polling, this has no slow state."""

    def wait(self, longest_seconds: float | None = None) -> None:
        """Wait until something may have changed since the last wait began or ended."""
        self._seen = self._wake_ups.wait(self._seen, self._topic)
