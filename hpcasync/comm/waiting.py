"""Waiting without keeping a core busy: MPI's own waits spin, and a rank that waits often shares its core."""

import time

from mpi4py import MPI


class Backoff:
    """Sleeps that grow from nothing to `longest_seconds` while nothing happens."""

    def __init__(self, longest_seconds: float = 0.001, num_spins: int = 20) -> None:
        self._longest_seconds = longest_seconds
        self._num_spins = num_spins
        self._num_idle = 0

    def reset(self) -> None:
        """Something happened: be quick again."""
        self._num_idle = 0

    def wait(self) -> None:
        """Wait a moment, longer each time since the last `reset`."""
        self._num_idle += 1
        if self._num_idle <= self._num_spins:
            time.sleep(0)
        else:
            time.sleep(min(self._longest_seconds, 2e-5 * (self._num_idle - self._num_spins)))


def make_progress(comm: MPI.Intracomm) -> None:
    """Let MPI serve other ranks' one-sided operations on this rank (needed between hosts over TCP)."""
    comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)


def wait_for_all(comm: MPI.Intracomm) -> None:
    """A barrier that sleeps while it waits (collective)."""
    request = comm.Ibarrier()
    backoff = Backoff(longest_seconds=0.005)
    while not request.Test():
        backoff.wait()
