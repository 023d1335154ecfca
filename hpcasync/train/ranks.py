"""The ranks of a job, settled before anything is trained: who does what, with what, and what follows a death."""

from dataclasses import dataclass

from mpi4py import MPI

from hpcasync.comm.mpi import collectively, require_same
from hpcasync.comm.roles import Roles
from hpcasync.deaths.policy import Deaths
from hpcasync.ps.server.kernel_library import describe_updates
from hpcasync.slurm.environment import allocated_cpus
from hpcasync.train.machine.resources import Resources, settle_resources
from hpcasync.train.machine.settle_roles import Settings, settle_roles


@dataclass(frozen=True)
class Ranks:
    """All ranks of a job, and this one among them.

    Attributes:
        comm: all ranks.
        roles, resources, deaths: who does what, what this rank computes with, and what becomes of those that die.
    """

    comm: MPI.Intracomm
    roles: Roles
    resources: Resources
    deaths: Deaths

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank counts, logs, saves and decides."""
        return self.comm.rank == self.roles.coordinator_rank

    @property
    def is_server(self) -> bool:
        return self.roles.is_server(self.comm.rank)

    @property
    def num_workers(self) -> int:
        return len(self.roles.worker_ranks)

    @property
    def worker(self) -> int:
        return self.roles.worker_ranks.index(self.comm.rank)


def settle_ranks(config: Settings, comm: MPI.Intracomm, *, may_be_alone: bool = False) -> tuple[Settings, Ranks]:
    """The ranks of a job, and the configuration with the number of servers that there are (collective).

    Args:
        may_be_alone: a single rank is a worker without servers, whatever the mode.

    Raises:
        UserError: on every rank, for anything that a user can cause.
    """

    def settle() -> tuple[Settings, Ranks]:
        settled, roles = settle_roles(config, comm, may_be_alone=may_be_alone)
        deaths = Deaths(comm, roles, settled)
        return settled, Ranks(comm, roles, settle_resources(settled, roles, comm, allocated_cpus()), deaths)

    require_same(comm, describe_updates(), "how updates are computed")
    return collectively(comm, settle)
