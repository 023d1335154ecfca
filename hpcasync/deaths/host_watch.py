"""Noticing that another rank of this host has died, where MPI does not end the job by itself.

Under Open MPI's `mpirun --with-ft mpi` the others live on when a rank is killed, and some of them would wait for it
for ever. Every rank then watches the processes on its own host. The death of a rank that the job can do without
(`may_lose`) is noted for the coordinator to deal with; any other ends the job.
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from mpi4py import MPI

_POLL_SECONDS = 0.2
# For a rank's message to pass through mpirun before the job is ended.
_RELAY_SECONDS = 0.2
# For the end of the job by one rank, before the others end themselves.
_ABORT_SECONDS = 2.0
# Between a death and the coordinator's dealing with it: it may be in the middle of a long update or save.
_DEALING_SECONDS = 60.0
# For the other ranks to leave first, at the end, before those whose absence they would take for a death.
_PARTING_SECONDS = 5.0


@dataclass(frozen=True)
class Process:
    """A rank as its host knows it: `namespace` is that of its process number."""

    pid: int
    started: float
    namespace: str

    @classmethod
    def own(cls) -> "Process":
        return cls(os.getpid(), psutil.Process().create_time(), _pid_namespace())

    def is_alive(self) -> bool:
        """Whether it has not ended; a process that is stopped lives."""
        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def mpi_survives_deaths() -> bool:
    """Whether this MPI lets the other ranks live when one is killed: Open MPI's `mpirun --with-ft mpi`."""
    value = os.environ.get("OMPI_MCA_mpi_ft_enable", "")  # noqa: SIM112 - the name is Open MPI's
    return value.lower() in ("1", "true", "yes", "t", "y")


class LifeWatch:
    """Watches the ranks of this host from a thread (built collectively).

    Args:
        names: what each rank is to people, for example "server 0".
        exit_code: of a job that is ended because of a death.
        coordinator: the rank that deals with deaths.
    """

    def __init__(
        self, comm: MPI.Intracomm, hosts: Sequence[str], names: Sequence[str], exit_code: int, *, coordinator: int
    ) -> None:
        processes = comm.allgather(Process.own())
        self._rank = comm.rank
        self._coordinator = coordinator
        self._hosts = hosts
        self._names = names
        self._code_of_loss = exit_code
        self._watched = {
            rank: process
            for rank, process in enumerate(processes)
            if hosts[rank] == hosts[comm.rank] and process.namespace == _pid_namespace()
        }
        self.sees_all = len(self._watched) == comm.size
        self._may_lose: frozenset[int] = frozenset()
        self._dead: dict[int, float] = {}
        self._acknowledged: set[int] = set()
        self._exit_code: int | None = None
        threading.Thread(target=self._run, name="life-watch", daemon=True).start()
        atexit.register(self._leave)

    @property
    def dead(self) -> Mapping[int, float]:
        """Ranks that have died, and when (time.monotonic)."""
        return dict(self._dead)

    def may_lose(self, ranks: Sequence[int]) -> None:
        """From now on the job can do without these ranks, as long as the coordinator deals with their deaths."""
        self._may_lose = frozenset(ranks)

    def acknowledge(self, rank: int) -> None:
        """The coordinator has dealt with a death."""
        self._acknowledged.add(rank)

    def ended(self, exit_code: int) -> None:
        """Everything has been done: who dies now is not missed. `exit_code`: the job's at one rank, 0 at the others."""
        self._exit_code = exit_code

    def wait_for_verdict(self) -> None:
        """After an MPI call has failed because a rank died: give the watch the time to end the job with a message."""
        time.sleep(4 * _POLL_SECONDS + _RELAY_SECONDS + _ABORT_SECONDS)

    def _run(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            for rank, process in self._watched.items():
                if rank not in self._dead and not process.is_alive():
                    self._dead[rank] = time.monotonic()
            for rank, died in sorted(self.dead.items()):
                seconds = time.monotonic() - died
                if self._exit_code is not None:
                    return
                if rank not in self._may_lose:
                    speaker = min(rank for rank in self._watched if rank not in self._dead)
                    self._end_job(f"{self._describe(rank)} has died, and the job cannot go on without it", speaker)
                elif self._rank == self._coordinator and rank not in self._acknowledged and seconds > _DEALING_SECONDS:
                    self._end_job(f"{self._describe(rank)} has died, and the others are stuck", self._rank)

    def _leave(self) -> None:
        """Where ranks may have died: end the process without MPI_Finalize, which may wait for them for ever.

        Called when Python ends; what it calls after this is MPI's. Workers leave first, then servers, the first one
        last: who has not heard of the end yet must not miss a server, nor be ended by mpirun for an exit code.
        """
        if self._exit_code is None or not self._may_lose:
            return
        deadline = time.monotonic() + _PARTING_SECONDS
        first = [process for rank, process in self._watched.items() if self._leaves_before(rank)]
        while any(process.is_alive() for process in first) and time.monotonic() < deadline:
            time.sleep(0.01)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self._exit_code)

    def _leaves_before(self, rank: int) -> bool:
        return self._rank not in self._may_lose and (rank in self._may_lose or rank > self._rank)

    def _end_job(self, message: str, speaker: int) -> None:
        """End all ranks of the job: one speaks; each that calls this ends itself where that does not work."""
        threading.Thread(target=_exit_after, args=(_ABORT_SECONDS, self._code_of_loss), daemon=True).start()
        if self._rank == speaker:
            print(f"hpcasync: {message}: it ends", file=sys.stderr, flush=True)
            time.sleep(_RELAY_SECONDS)
            MPI.COMM_WORLD.Abort(self._code_of_loss)
        time.sleep(2 * _ABORT_SECONDS)

    def _describe(self, rank: int) -> str:
        return f"{self._names[rank]} (rank {rank} on {self._hosts[rank]}, process {self._watched[rank].pid})"


def _exit_after(seconds: float, exit_code: int) -> None:
    time.sleep(seconds)
    os._exit(exit_code)


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return sys.platform
