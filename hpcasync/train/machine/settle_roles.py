"""Who is a server, where that depends on the machine."""

from collections.abc import Sequence
from typing import TypeVar

from mpi4py import MPI

from hpcasync.comm.mpi import gather_hosts
from hpcasync.comm.roles import Roles, assign_beside, assign_roles
from hpcasync.config.schema import RunConfig
from hpcasync.train.machine.gpus import SeenGpus, see_gpus

Settings = TypeVar("Settings", bound=RunConfig)


def settle_roles(config: Settings, comm: MPI.Intracomm, *, may_be_alone: bool = False) -> tuple[Settings, Roles]:
    """The roles of all ranks, and the configuration with the number of servers that there are (collective).

    Args:
        may_be_alone: a single rank is a worker without servers, whatever the mode.

    Raises:
        UserError: on every rank alike: too few ranks.
    """
    hosts = gather_hosts(comm)
    if may_be_alone and comm.size == 1:
        return config, assign_roles(hosts, 0)
    if not config.has_server_per_device:
        return config, assign_roles(hosts, config.num_servers, config.roles.placement)
    roles = assign_beside(hosts, count_devices(hosts, comm.allgather(see_gpus()) if config.may_serve_on_gpus else []))
    return config.with_servers(len(roles.server_ranks)), roles


def count_devices(hosts: Sequence[str], seen: Sequence[SeenGpus]) -> dict[str, int]:
    """Of each host: GPUs that any of its ranks sees; the host itself where none does, or `seen` is empty."""
    uuids: dict[str, set[str]] = {host: set() for host in hosts}
    for host, gpus in zip(hosts, seen, strict=False):
        uuids[host] |= {gpu.uuid for gpu in gpus.gpus}
    return {host: max(1, len(found)) for host, found in uuids.items()}
