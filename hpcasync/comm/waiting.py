"""Waiting without keeping a core busy: MPI's own waits spin, and a rank that waits often shares its core."""

import os
import time

from mpi4py import MPI

# The first looks give the core to whoever wants it and come back: no answer is late, and where many ranks share a core
# each turn costs them a microsecond or two. A sleep, however short, takes 70 and costs 15 (Linux 6.18).
_NUM_TURNS = 40
# Who wants the core for longer computes. Then a sleeper gets it back sooner than a rank that gives its turn away.
_LONG_TURN_SECONDS = 0.001
# Waits that begin with a sleep after that.
_NUM_SHY_WAITS = 100
# Sleeps begin here and grow by as much, up to a millisecond: an answer that comes soon is seen soon.
_STEP_SECONDS = 2e-5
SHORT_SECONDS = 0.001
# A look at the control words costs about 30 microseconds of a core, most of them for the sleep itself: at one look a
# millisecond that is 3 % of it, at one in five 0.6 %.
LONG_SECONDS = 0.005
# Longer than a millisecond, a sleep makes the wait longer by one percent at most, half a percent on average.
_PART_OF_WAIT = 0.01


class Backoff:
    """Turns given away, then sleeps that grow while nothing happens: to a millisecond, then to 1% of the wait."""

    # Of this process: waits that are to begin with a sleep, for something computes on its core.
    _num_shy_waits = 0

    def __init__(
        self,
        longest_seconds: float = SHORT_SECONDS,
        *,
        quick_seconds: float = SHORT_SECONDS,
        part_of_wait: float = _PART_OF_WAIT,
    ) -> None:
        self._longest_seconds = longest_seconds
        self._quick_seconds = quick_seconds
        self._part_of_wait = part_of_wait
        self._num_turns = _NUM_TURNS
        self._num_idle = 0
        self._idle_since = 0.0

    def reset(self) -> None:
        """Something happened: be quick again."""
        self._num_idle = 0

    def wait(self, longest_seconds: float | None = None) -> None:
        """Wait a moment, longer each time since the last `reset`."""
        if self._num_idle == 0:
            self._begin()
        self._num_idle += 1
        if self._num_idle <= self._num_turns:
            self._give_turn()
        else:
            longest = self._longest_seconds if longest_seconds is None else longest_seconds
            time.sleep(min(longest, self._next_seconds()))

    def _begin(self) -> None:
        self._idle_since = time.monotonic()
        self._num_turns = _NUM_TURNS
        if Backoff._num_shy_waits:
            Backoff._num_shy_waits -= 1
            self._num_turns = 0

    def _give_turn(self) -> None:
        before = time.monotonic()
        os.sched_yield()
        if time.monotonic() - before > _LONG_TURN_SECONDS:
            Backoff._num_shy_waits = _NUM_SHY_WAITS
            self._num_turns = self._num_idle

    def _next_seconds(self) -> float:
        growing = min(self._quick_seconds, _STEP_SECONDS * (self._num_idle - self._num_turns))
        waited = time.monotonic() - self._idle_since
        return max(growing, waited * self._part_of_wait)


def make_progress(comm: MPI.Intracomm) -> None:
    """Let MPI serve other ranks' one-sided operations on this rank (needed between hosts over TCP).

    Deaths that MPI has noticed are acknowledged: what follows from them is decided elsewhere (`deaths.host_watch`).
    """
    try:
        comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)
    except MPI.Exception as error:
        if not is_death(error):
            raise
        comm.Ack_failed()


def is_death(error: MPI.Exception) -> bool:
    """Whether MPI says with this error that a rank has died."""
    return error.error_class in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)


def wait_for_all(comm: MPI.Intracomm) -> None:
    """A barrier that sleeps while it waits (collective)."""
    request = comm.Ibarrier()
    backoff = Backoff(LONG_SECONDS)
    while not request.Test():
        backoff.wait()
