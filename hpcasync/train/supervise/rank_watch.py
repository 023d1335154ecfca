"""Names the ranks that all others wait for in synchronous training, also where their whole process is stopped."""

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from hpcasync.comm.waiting import Backoff

# Part of the shortest wait that is reported after which a rank that waits says so.
_SAY_AFTER = 0.25
# Rank 0 reports; rank 1 does for it.
_OBSERVERS = (0, 1)
_CHECK_SECONDS = 0.25


class RankWatch:
    """The waits of all ranks for each other, each numbered; a rank that waits for long tells the observers so.

    Who is not heard of is waited for. Nothing is sent while nobody waits for long.

    Args:
        least_seconds: shortest wait that is reported (logging.stall); 0: none is.
        report: at rank 0, takes the kind of event (`stall`, `stall-over`), a line for people, and fields to record.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        hosts: Sequence[str],
        least_seconds: float,
        report: Callable[..., None] | None = None,
    ) -> None:
        self._comm = comm.Dup()
        self._hosts = hosts
        self._least_seconds = least_seconds
        self._report = report
        self._number = 0
        self._waits_in = [0] * comm.size  # the last wait that each rank has told of
        self._sent: list[tuple[MPI.Request, np.ndarray[tuple[int], np.dtype[np.int64]]]] = []
        self._named: dict[int, float] = {}

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Wait until `is_done`, which takes all ranks; all call this in the same order."""
        self._number += 1
        backoff = Backoff()
        started = checked = time.monotonic()
        has_said = not self._least_seconds
        while not is_done():
            backoff.wait()
            now = time.monotonic()
            if now - checked < _CHECK_SECONDS * min(1.0, self._least_seconds or 1.0):
                continue
            checked = now
            if not has_said and now - started > _SAY_AFTER * self._least_seconds:
                has_said = True
                self._say()
            if self._least_seconds and now - started > self._least_seconds:
                self._look(now - started)
        if self._named:
            self._over(time.monotonic() - started)

    def close(self) -> None:
        """Forget what is under way, after a barrier (collective)."""
        self._listen()
        for request, _ in self._sent:
            request.Wait()
        self._comm.Free()

    def _say(self) -> None:
        self._sent = [(request, word) for request, word in self._sent if not request.Test()]
        for observer in _OBSERVERS[: self._comm.size]:
            if observer != self._comm.rank:
                word = np.array([self._number], np.int64)
                self._sent.append((self._comm.Isend(word, observer), word))

    def _listen(self) -> None:
        status = MPI.Status()
        word = np.zeros(1, np.int64)
        while self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            self._comm.Recv(word, status.Get_source())
            self._waits_in[status.Get_source()] = int(word[0])

    def _look(self, seconds: float) -> None:
        """Name those that are waited for, once."""
        rank = self._comm.rank
        if self._named or rank not in _OBSERVERS:
            return
        self._listen()
        missing = [other for other, number in enumerate(self._waits_in) if other != rank and number < self._number]
        if rank and 0 not in missing:
            return
        for other in missing:
            self._named[other] = seconds
            self._tell(
                "stall", other, f"is waited for by all the others, for {seconds:.0f} s now", silent_seconds=seconds
            )

    def _over(self, seconds: float) -> None:
        for other in self._named:
            self._tell("stall-over", other, f"takes part again, after {seconds:.0f} s", silent_seconds=seconds)
        self._named.clear()

    def _tell(self, kind: str, rank: int, text: str, **fields: float) -> None:
        host = self._hosts[rank]
        line = f"rank {rank} on {host} {text}"
        if self._report is not None:
            self._report(kind, line, worker=rank, rank=rank, host=host, **fields)
        else:
            print(f"hpcasync: {line}", file=sys.stderr, flush=True)
