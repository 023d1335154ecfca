"""Cores of its own for each rank of a host, so that servers and workers do not take them from each other."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcasync.comm.roles import Roles, number_ranges

Cores = frozenset[int]
# NUMA node of each core: near to it is the memory of that node.
Nodes = Mapping[int, int]

# For child processes that are no ranks: the cores from before, as numbers with commas between them.
UNBOUND_VARIABLE = "HPCASYNC_UNBOUND_CORES"
_NODES = Path("/sys/devices/system/node")


def are_own(cores: Cores, *, num_of_host: int, num_allocated: int) -> bool:
    """Whether no other job computes on these cores, so that ranks may be bound to them.

    They are where a scheduler, a cgroup or a user has set them apart from the others of the host, or has allocated all
    of the host. Otherwise a second job would bind its ranks to the very same ones.

    Args:
        cores: that a rank may run on.
        num_of_host: cores that its host has.
        num_allocated: of this host to the job; 0: there is no allocation.
    """
    return len(cores) < num_of_host or num_allocated >= num_of_host


def numa_nodes(root: Path = _NODES) -> dict[int, int]:
    """Those of this host's cores; nothing where the system does not say."""
    nodes: dict[int, int] = {}
    for path in root.glob("node[0-9]*/cpulist"):
        for run in filter(None, path.read_text().strip().split(",")):
            first, _, last = run.partition("-")
            nodes |= dict.fromkeys(range(int(first), int(last or first) + 1), int(path.parent.name[len("node") :]))
    return nodes


def share_cores(
    roles: Roles,
    threads_of_ranks: Sequence[int],
    cores_of_ranks: Sequence[Cores],
    are_own_of_ranks: Sequence[bool],
    nodes_of_ranks: Sequence[Nodes],
    near_of_ranks: Sequence[int | None] = (),
) -> list[Cores]:
    """The cores that each world rank should keep to.

    The ranks of a host are given neighbouring cores, one NUMA node after the other: servers first as many as they have
    threads, and the workers equal shares of the others; those with a GPU are given cores of its node first. They keep
    what they have where a scheduler has given them different cores already, where there are more threads than cores,
    and where others may compute on them.

    Args:
        threads_of_ranks: intra-op threads of each world rank.
        cores_of_ranks: the cores that each world rank may run on, as numbered on its host.
        are_own_of_ranks: see `are_own`.
        nodes_of_ranks: of the host of each world rank.
        near_of_ranks: the node that each world rank's GPU is near to, if it has one.
    """
    near = [*near_of_ranks, *[None] * (len(roles.hosts) - len(near_of_ranks))]
    shares = list(cores_of_ranks)
    for host in dict.fromkeys(roles.hosts):
        ranks = roles.ranks_on_host(host)
        is_shared = len({cores_of_ranks[rank] for rank in ranks}) == 1
        is_own = all(are_own_of_ranks[rank] for rank in ranks)
        if is_own and is_shared and sum(threads_of_ranks[rank] for rank in ranks) <= len(cores_of_ranks[ranks[0]]):
            nodes = nodes_of_ranks[ranks[0]]
            free = sorted(cores_of_ranks[ranks[0]], key=lambda core: (nodes.get(core, 0), core))
            sizes = _sizes(roles, ranks, threads_of_ranks, len(free))
            for rank, cores in _deal(sizes, free, nodes, near).items():
                shares[rank] = cores
    return shares


def bind(cores: Cores, environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Keep this thread, and those it will start, to some cores."""
    before = frozenset(os.sched_getaffinity(0))
    if cores != before:
        environment[UNBOUND_VARIABLE] = ",".join(map(str, sorted(before)))
        os.sched_setaffinity(0, cores)


def unbind(environment: Mapping[str, str] = os.environ) -> None:
    """In a child process: use all cores that the rank which started it had before `bind`."""
    if text := environment.get(UNBOUND_VARIABLE):
        os.sched_setaffinity(0, {int(core) for core in text.split(",")})


def describe_cores(roles: Roles, cores_of_ranks: Sequence[Cores]) -> list[str]:
    """What was decided: a line for each host whose ranks have cores of their own."""
    lines = []
    for host in dict.fromkeys(roles.hosts):
        ranks = roles.ranks_on_host(host)
        all_cores = frozenset().union(*(cores_of_ranks[rank] for rank in ranks))
        if sum(len(cores_of_ranks[rank]) for rank in ranks) == len(all_cores):
            shares = ", ".join(f"rank {rank} {number_ranges(cores_of_ranks[rank])}" for rank in ranks)
            lines.append(f"cores of {host}: {shares}")
        else:
            lines.append(f"cores of {host}: {len(cores_of_ranks[ranks[0]])}, shared by its {len(ranks)} ranks")
    return lines


def _sizes(roles: Roles, ranks: Sequence[int], threads: Sequence[int], num_cores: int) -> dict[int, int]:
    """How many cores each rank of a host is given, servers first."""
    servers = [rank for rank in ranks if roles.is_server(rank)]
    workers = [rank for rank in ranks if not roles.is_server(rank)]
    num_left = num_cores - sum(threads[rank] for rank in servers)
    return {rank: threads[rank] for rank in servers} | {
        rank: num_left // len(workers) + (position < num_left % len(workers)) for position, rank in enumerate(workers)
    }


def _deal(sizes: Mapping[int, int], free: list[int], nodes: Nodes, near: Sequence[int | None]) -> dict[int, Cores]:
    """First to each rank of its node's, then whatever is left."""
    dealt: dict[int, list[int]] = {rank: [] for rank in sizes}
    for is_near in (True, False):
        for rank, size in sizes.items():
            fitting = [core for core in free if not is_near or nodes.get(core) == near[rank] is not None]
            taken = fitting[: size - len(dealt[rank])]
            dealt[rank] += taken
            free = [core for core in free if core not in taken]
    return {rank: frozenset(cores) for rank, cores in dealt.items()}
