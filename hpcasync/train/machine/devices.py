"""Which GPU and how many threads a rank computes with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcasync.comm.roles import Roles
from hpcasync.config.roles import CPUS_PER_GPU_WORKER, SERVER_THREADS
from hpcasync.config.schema import RunConfig
from hpcasync.config.section import MOST_THREADS
from hpcasync.errors import UserError
from hpcasync.train.machine.gpus import Gpu, SeenGpus


@dataclass(frozen=True)
class GpuPlan:
    """Who computes on which GPU.

    Attributes:
        gpus: of each world rank; None: the CPU.
        scoring: of the process that scores snapshots; None: the CPU.
        scoring_shares_with: world ranks that compute on the same one.
    """

    gpus: tuple[Gpu | None, ...]
    scoring: Gpu | None = None
    scoring_shares_with: tuple[int, ...] = ()


def plan_gpus(config: RunConfig, roles: Roles, seen: Sequence[SeenGpus]) -> GpuPlan:
    """Give the workers of a host its GPUs in turn, likewise its servers if they are to have some.

    Raises:
        UserError: on every rank alike: GPUs are missing, or cannot be used.
    """
    of_workers = {rank: _gpu_of("device", config.device, roles, rank, seen[rank]) for rank in roles.worker_ranks}
    _check_alike(roles, of_workers)
    wanted = config.roles.server_device
    if wanted == "auto":
        wanted = "cuda" if _suit_servers([*of_workers.values()], [seen[rank] for rank in roles.server_ranks]) else "cpu"
    of_servers = {rank: _gpu_of("roles.server_device", wanted, roles, rank, seen[rank]) for rank in roles.server_ranks}
    gpus = tuple({**of_workers, **of_servers}[rank] for rank in range(len(seen)))
    if config.mode == "sync":
        _check_own(roles, gpus)
    here = roles.ranks_on_host(roles.hosts[roles.coordinator_rank])
    used = {gpu.uuid: rank for rank in here if (gpu := gpus[rank]) is not None}
    scoring = _scoring_gpu(config, roles, seen[roles.coordinator_rank], set(used))
    shares = tuple(rank for rank in here if scoring and gpus[rank] and gpus[rank].uuid == scoring.uuid)  # type: ignore[union-attr]
    return GpuPlan(gpus, scoring, shares)


def _suit_servers(of_workers: Sequence[Gpu | None], seen_by_servers: Sequence[SeenGpus]) -> bool:
    """Whether servers are better off on GPUs: there no exchange passes through the host."""
    every = [*of_workers, *(next(iter(seen.gpus), None) for seen in seen_by_servers)]
    return all(gpu is not None and not gpu.is_part for gpu in every)


def _gpu_of(key: str, wanted: str, roles: Roles, rank: int, seen: SeenGpus) -> Gpu | None:
    is_server = roles.is_server(rank)
    if wanted == "cpu":
        return None
    if not seen.gpus and (wanted == "cuda" or seen.problem):
        # A machine with a driver is there for its GPU: training on its CPU would be a waste in silence.
        why = seen.problem or "there is no NVIDIA driver"
        raise _refusal(
            f"{key}={wanted}, but no GPU can be used on {roles.hosts[rank]} (rank {rank}): {why}; use {key}=cpu, or "
            "see `hpcasync doctor`"
        )
    neighbours = [other for other in roles.ranks_on_host(roles.hosts[rank]) if roles.is_server(other) == is_server]
    return seen.gpus[neighbours.index(rank) % len(seen.gpus)] if seen.gpus else None


def _check_alike(roles: Roles, gpus: Mapping[int, Gpu | None]) -> None:
    with_gpu = [rank for rank in roles.worker_ranks if gpus[rank] is not None]
    without = [rank for rank in roles.worker_ranks if gpus[rank] is None]
    if with_gpu and without:
        raise _refusal(
            f"device=auto: rank {with_gpu[0]} on {roles.hosts[with_gpu[0]]} has a GPU, but rank {without[0]} on "
            f"{roles.hosts[without[0]]} sees none and would be much slower: leave that host out, or use device=cpu"
        )


def _check_own(roles: Roles, gpus: Sequence[Gpu | None]) -> None:
    first: dict[tuple[str, str], int] = {}
    for rank in roles.worker_ranks:
        gpu, host = gpus[rank], roles.hosts[rank]
        if gpu is not None and (other := first.setdefault((host, gpu.uuid), rank)) != rank:
            num_workers = len(roles.ranks_on_host(host))
            raise _refusal(
                f"mode=sync: ranks {other} and {rank} would share {gpu} of {host}, which NCCL does not allow: start "
                f"a rank for each GPU ({num_workers} are too many), or use device=cpu"
            )


def _scoring_gpu(config: RunConfig, roles: Roles, seen: SeenGpus, used: set[str]) -> Gpu | None:
    """One that nobody trains on; another only on request."""
    validation = config.validation
    if not validation.score or validation.device == "cpu":
        return None
    for gpu in seen.gpus:
        if gpu.uuid not in used:
            return gpu
    if validation.device == "auto":
        return None
    if not seen.gpus:
        raise _refusal(
            f"validation.device=cuda, but no GPU can be used on {roles.hosts[roles.coordinator_rank]}, where snapshots "
            "are scored: use validation.device=cpu or validation.device=auto, or see `hpcasync doctor`"
        )
    return seen.gpus[0]


def _refusal(message: str) -> UserError:
    return UserError(message, everywhere=True)


def choose_threads(
    config: RunConfig,
    roles: Roles,
    world_rank: int,
    cores_of_ranks: Sequence[frozenset[int]],
    gpus: Sequence[Gpu | None],
) -> int:
    """Threads that this rank computes with: unless configured, a worker's share of the cores that it may use.

    Args:
        cores_of_ranks: the cores that each world rank may run on, as numbered on its host. Workers of a host with the
            same cores share them; those that mpirun or the scheduler has bound apart do not.
        gpus: of each world rank.
    """
    if roles.is_server(world_rank):
        return config.roles.server_threads or _server_threads(config, roles, world_rank, cores_of_ranks, gpus)
    if config.roles.worker_threads is not None:
        return config.roles.worker_threads
    cores = cores_of_ranks[world_rank]
    neighbours = [rank for rank in roles.ranks_on_host(roles.hosts[world_rank]) if not roles.is_server(rank)]
    return max(1, len(cores) // sum(cores_of_ranks[rank] == cores for rank in neighbours))


def _server_threads(
    config: RunConfig,
    roles: Roles,
    world_rank: int,
    cores_of_ranks: Sequence[frozenset[int]],
    gpus: Sequence[Gpu | None],
) -> int:
    """On the CPU, what workers on GPUs leave over; one where more would keep ranks from having cores of their own."""
    here = roles.ranks_on_host(roles.hosts[world_rank])
    servers = [rank for rank in here if roles.is_server(rank)]
    on_gpus = [rank for rank in here if rank not in servers and gpus[rank] is not None]
    if not on_gpus or gpus[world_rank] is not None:
        workers = [rank for rank in here if rank not in servers]
        of_workers = sum(choose_threads(config, roles, rank, cores_of_ranks, gpus) for rank in workers)
        left = len(frozenset[int]().union(*(cores_of_ranks[rank] for rank in here))) - of_workers
        return 1 if len(servers) <= left < SERVER_THREADS * len(servers) else SERVER_THREADS
    share = (len(cores_of_ranks[world_rank]) - CPUS_PER_GPU_WORKER * len(on_gpus)) // len(servers)
    return min(MOST_THREADS, max(SERVER_THREADS, share))
