"""What a job does about ranks that die, where MPI lets the others live: goes on without workers, or ends."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mpi4py import MPI

from hpcasync.comm.roles import Roles
from hpcasync.comm.waiting import is_death
from hpcasync.config.schema import RunConfig
from hpcasync.deaths import lifeline
from hpcasync.deaths.host_watch import LifeWatch, mpi_survives_deaths
from hpcasync.errors import UserError
from hpcasync.exit_codes import RANK_LOST


class Deaths:
    """A rank's view of the deaths of others (built collectively).

    Raises:
        UserError: on every rank, where the job was asked to survive the deaths of workers and cannot.
    """

    def __init__(self, comm: MPI.Intracomm, roles: Roles, config: RunConfig) -> None:
        self._roles = roles
        self._is_coordinator = comm.rank == roles.coordinator_rank
        # Otherwise MPI itself ends the job.
        self._watch: LifeWatch | None = None
        if mpi_survives_deaths():
            self._watch = LifeWatch(comm, roles.hosts, _names(roles), RANK_LOST, coordinator=roles.coordinator_rank)
        obstacle = _obstacle(self._watch, roles, config)
        if obstacle and os.environ.get(lifeline.SURVIVE_VARIABLE):
            raise UserError(
                f"--survive-workers: {obstacle}; leave the option out, or use --max-restarts", everywhere=True
            )
        self.may_lose_workers = not obstacle
        lifeline.introduce(_names(roles)[comm.rank])
        if self.may_lose_workers:
            lifeline.release()
        elif self._watch is not None and lifeline.is_held():
            # `hpcasync launch` sees the deaths on all hosts.
            self._watch.ended(0)

    def begin(self) -> None:
        """Training begins: from now on workers may die."""
        if self._watch is not None and self.may_lose_workers:
            self._watch.may_lose(self._roles.worker_ranks)

    def dead_workers(self) -> Sequence[int]:
        """worker_index of those that have died."""
        dead = {} if self._watch is None else self._watch.dead
        return [self._roles.worker_ranks.index(rank) for rank in dead if rank in self._roles.worker_ranks]

    def acknowledge(self, worker: int) -> None:
        """The coordinator has let a dead worker go."""
        if self._watch is not None:
            self._watch.acknowledge(self._roles.worker_ranks[worker])

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Let an MPI error that comes of a death be reported as that, by the rank that reports it for all."""
        try:
            yield
        except MPI.Exception as error:
            if self._watch is not None and is_death(error):
                self._watch.wait_for_verdict()
            lifeline.wait_for_verdict()
            raise

    def ended(self, exit_code: int) -> None:
        """All is saved and told: the job ends with this code, whoever dies now."""
        if self._watch is not None:
            self._watch.ended(exit_code if self._is_coordinator else 0)


def _obstacle(watch: LifeWatch | None, roles: Roles, config: RunConfig) -> str:
    """Why the job cannot go on without a worker; empty if it can."""
    if config.mode == "sync":
        return "mode=sync needs every rank in every step"
    if not roles.server_ranks:
        return "a single rank has no others that could go on"
    if watch is None:
        return "this MPI ends the job when a rank dies (Open MPI's mpirun does not with --with-ft mpi)"
    if len(set(roles.hosts)) > 1:
        return "the ranks are on several hosts, where MPI cannot end a job that has lost one"
    if not watch.sees_all:
        return "the ranks do not see each other's processes (they are in containers of their own)"
    return ""


def _names(roles: Roles) -> list[str]:
    names = [""] * len(roles.hosts)
    for kind, ranks in (("server", roles.server_ranks), ("worker", roles.worker_ranks)):
        for index, rank in enumerate(ranks):
            names[rank] = f"{kind} {index}"
    return names
