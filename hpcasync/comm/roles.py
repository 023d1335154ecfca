"""Which rank is a server and which a worker; arithmetic on host names only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hpcasync.command_line import this_command_on
from hpcasync.errors import UserError

Placement = Literal["spread", "first"]


@dataclass(frozen=True)
class Roles:
    """The roles of all ranks of a job.

    Attributes:
        hosts: host name of each world rank.
        server_ranks: world rank of each server; server 0 is the coordinator.
        worker_ranks: world rank of each worker.
    """

    hosts: tuple[str, ...]
    server_ranks: tuple[int, ...]
    worker_ranks: tuple[int, ...]

    @property
    def coordinator_rank(self) -> int:
        """World rank that orders the updates; the first worker where there are no servers."""
        return (self.server_ranks or self.worker_ranks)[0]

    def is_server(self, world_rank: int) -> bool:
        """Whether this rank owns a shard."""
        return world_rank in self.server_ranks

    def ranks_on_host(self, host: str) -> list[int]:
        return [rank for rank, name in enumerate(self.hosts) if name == host]

    def describe(self) -> list[str]:
        """One line per host: its servers and workers by world rank."""
        lines = []
        for host in dict.fromkeys(self.hosts):
            ranks = self.ranks_on_host(host)
            servers = [rank for rank in ranks if self.is_server(rank)]
            workers = [rank for rank in ranks if not self.is_server(rank)]
            parts = [
                f"{name} on ranks {number_ranges(group)}"
                for name, group in (("servers", servers), ("workers", workers))
                if group
            ]
            lines.append(f"{host}: {', '.join(parts)}")
        return lines


def assign_roles(hosts: Sequence[str], num_servers: int, placement: Placement = "spread") -> Roles:
    """Give the servers to the hosts in turn, the first rank of each host first, so that their links share the load.

    Args:
        num_servers: 0 for synchronous training, where every rank is a worker.
        placement: "first": the first ranks are the servers, wherever they are. That is for jobs which start some ranks
            on hosts for servers alone.

    Raises:
        UserError: no rank is left to be a worker.
    """
    if num_servers >= len(hosts):
        raise UserError(
            f"{len(hosts)} MPI rank{'s' if len(hosts) > 1 else ''} cannot hold roles.servers={num_servers} and at "
            f"least one worker: start {num_servers + 1} ranks or more, for example "
            f"`{this_command_on(num_servers + 2)}`. (If the job was started with more, mpirun and the MPI "
            "library of mpi4py differ: see `hpcasync doctor`.)"
        )
    if placement == "first":
        return Roles(tuple(hosts), tuple(range(num_servers)), tuple(range(num_servers, len(hosts))))
    by_host: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        by_host.setdefault(host, []).append(rank)
    depth = max((len(ranks) for ranks in by_host.values()), default=0)
    in_turn = [ranks[level] for level in range(depth) for ranks in by_host.values() if level < len(ranks)]
    servers = tuple(in_turn[:num_servers])
    return Roles(tuple(hosts), servers, tuple(rank for rank in range(len(hosts)) if rank not in servers))


def assign_beside(hosts: Sequence[str], devices: Mapping[str, int]) -> Roles:
    """Make the first ranks of each host servers, one for each of its devices, and the others workers.

    Raises:
        UserError: a host has no rank left to be a worker.
    """
    servers: list[int] = []
    for host in dict.fromkeys(hosts):
        ranks, number = [rank for rank, name in enumerate(hosts) if name == host], devices[host]
        if len(ranks) <= number:
            raise UserError(
                f"roles.servers=per-device: {host} has {number} device(s) for servers and {len(ranks)} rank(s): start "
                f"more there, for example {2 * number}, so that each device has a worker too"
            )
        servers += ranks[:number]
    return Roles(tuple(hosts), tuple(servers), tuple(rank for rank in range(len(hosts)) if rank not in servers))


def number_ranges(numbers: Iterable[int]) -> str:
    """For example 0-3,8."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
