"""How a training job fills the allocation of a batch script: arithmetic on configuration and allocation alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcasync.config.roles import CPUS_PER_GPU_WORKER, SERVER_THREADS
from hpcasync.config.schema import Config
from hpcasync.errors import UserError
from hpcasync.slurm.environment import Allocation

Kind = Literal["sync", "async", "any"]


@dataclass(frozen=True)
class JobPlan:
    """What a batch script starts.

    Attributes:
        run_dir: the directory of the run.
        ranks_per_node: ranks, by node, in the order of the allocation.
        is_changed: whether these are not the tasks that SLURM was asked for.
        overrides: `key=value` for what the allocation decides.
        description: for the job's log, one line.
    """

    run_dir: Path
    ranks_per_node: tuple[int, ...]
    is_changed: bool
    overrides: tuple[str, ...]
    description: str

    @property
    def num_ranks(self) -> int:
        return sum(self.ranks_per_node)


def plan_job(config: Config, groups: Sequence[Allocation], kind: Kind) -> JobPlan:
    """Choose ranks, servers and threads.

    One rank for each task that was asked for. In a job of one component, where the job has GPUs, at least so many that
    each GPU has a worker; and one server beside the workers of each node, unless the configuration says how many. In a
    heterogeneous job the tasks of the first component are the servers, those of the second the workers. The CPUs that
    are not the servers' are shared by the workers as threads, unless the configuration says how many; where workers
    compute on GPUs, they get a few, and the servers beside them the rest.

    Args:
        groups: what SLURM gave, by component of the job.

    Raises:
        UserError: the mode is another script's, or the ranks do not suffice.
    """
    _check_mode(config, kind)
    return _plan_together(config, groups[0]) if len(groups) == 1 else _plan_apart(config, groups)


def is_set(config: Config, key: str) -> bool:
    """Whether the configuration sets a key of `roles`."""
    return key in config.roles.model_fields_set and getattr(config.roles, key) is not None


def servers_of(config: Config, num_nodes: int, gpus_per_node: int) -> int:
    """Servers on all nodes, as the configuration says; 0 if it says nothing."""
    if not is_set(config, "servers"):
        return 0
    servers = config.roles.servers
    if isinstance(servers, str):
        return num_nodes * (max(1, gpus_per_node) if config.may_serve_on_gpus else 1)
    return servers


def _plan_together(config: Config, allocation: Allocation) -> JobPlan:
    num_nodes = allocation.num_nodes
    is_sync = config.mode == "sync"
    num_gpus = 0 if config.device == "cpu" else allocation.gpus_per_node
    num_servers = 0 if is_sync else servers_of(config, num_nodes, allocation.gpus_per_node) or num_nodes
    servers = _spread(num_servers, num_nodes)
    ranks = allocation.tasks_per_node
    if num_gpus and min(ranks) < num_gpus + servers[0]:
        ranks = (max(*ranks, num_gpus + servers[0]),) * num_nodes
    _check_room(ranks, num_servers)
    overrides = [] if is_sync else [f"roles.servers={num_servers}"]
    reserved = config.roles.server_threads or SERVER_THREADS
    if num_gpus and num_servers and not is_set(config, "server_threads"):
        reserved = _server_threads(ranks, servers, allocation.cpus_per_node)
        overrides.append(f"roles.server_threads={reserved}")
    if not is_set(config, "worker_threads"):
        overrides.append(f"roles.worker_threads={_worker_threads(ranks, servers, allocation.cpus_per_node, reserved)}")
    return JobPlan(
        run_dir=config.output_dir,
        ranks_per_node=ranks,
        is_changed=ranks != allocation.tasks_per_node,
        overrides=tuple(overrides),
        description=f"{num_nodes} node(s), ranks per node {_list(ranks)}: {num_servers} server(s) and "
        f"{sum(ranks) - num_servers} worker(s); CPUs per node {_list(allocation.cpus_per_node)}, GPUs {num_gpus}; "
        f"{' '.join(overrides)}{_shortage(ranks, servers, allocation) if num_gpus else ''}",
    )


def _plan_apart(config: Config, groups: Sequence[Allocation]) -> JobPlan:
    """Servers on the nodes of the first component, workers on those of the second."""
    if len(groups) != 2:
        raise UserError(f"this job has {len(groups)} components: give two, for the servers and for the workers")
    if config.mode == "sync":
        raise UserError(
            "mode=sync has no servers for the first component: use slurm/train-sync.sbatch, or another mode"
        )
    servers, workers = groups
    if is_set(config, "servers") and config.roles.servers != servers.num_tasks:
        raise UserError(
            f"roles.servers={config.roles.servers}, but the first component of the job, for the servers, has "
            f"{servers.num_tasks} task(s): leave roles.servers out, or change --ntasks-per-node before the `:`"
        )
    overrides = [f"roles.servers={servers.num_tasks}", "roles.placement=first"]
    if not is_set(config, "worker_threads"):
        none = (0,) * workers.num_nodes
        threads = _worker_threads(workers.tasks_per_node, none, workers.cpus_per_node, 0)
        overrides.append(f"roles.worker_threads={threads}")
    return JobPlan(
        run_dir=config.output_dir,
        ranks_per_node=servers.tasks_per_node + workers.tasks_per_node,
        is_changed=False,
        overrides=tuple(overrides),
        description=f"{servers.num_nodes} node(s) of {_list(servers.tasks_per_node)} server(s), {workers.num_nodes} "
        f"node(s) of {_list(workers.tasks_per_node)} worker(s); CPUs per node {_list(servers.cpus_per_node)} and "
        f"{_list(workers.cpus_per_node)}; {' '.join(overrides)}",
    )


def _check_mode(config: Config, kind: Kind) -> None:
    if kind == "any" or (config.mode == "sync") == (kind == "sync"):
        return
    script = "train-sync.sbatch" if config.mode == "sync" else "train-async.sbatch"
    raise UserError(f"mode={config.mode} is not for this script: use slurm/{script}, or give another mode")


def _check_room(ranks: tuple[int, ...], num_servers: int) -> None:
    if sum(ranks) <= num_servers:
        per_node = num_servers // len(ranks) + 2
        raise UserError(
            f"{sum(ranks)} rank(s) on {len(ranks)} node(s) cannot hold {num_servers} server(s) and a worker: submit "
            f"with more tasks, for example --ntasks-per-node {per_node}, or set roles.servers"
        )


def _spread(count: int, num_nodes: int) -> tuple[int, ...]:
    """The share of each node, as `comm.roles.assign_roles` deals servers out to hosts with room for them."""
    return tuple(count // num_nodes + (node < count % num_nodes) for node in range(num_nodes))


def _server_threads(ranks: tuple[int, ...], servers: tuple[int, ...], cpus: tuple[int, ...]) -> int:
    """What workers on GPUs leave over."""
    shares = [
        (cpus_here - CPUS_PER_GPU_WORKER * (ranks_here - servers_here)) // servers_here
        for ranks_here, servers_here, cpus_here in zip(ranks, servers, cpus, strict=True)
        if servers_here
    ]
    return max(1, min(shares, default=1))


def _shortage(ranks: tuple[int, ...], servers: tuple[int, ...], allocation: Allocation) -> str:
    """A warning for the log, or nothing."""
    needed = [
        CPUS_PER_GPU_WORKER * (ranks_here - servers_here) + servers_here
        for ranks_here, servers_here in zip(ranks, servers, strict=True)
    ]
    if all(have >= need for have, need in zip(allocation.cpus_per_node, needed, strict=True)):
        return ""
    per_task = -(-max(needed) // min(allocation.tasks_per_node))
    return f"; too few CPUs, GPUs will wait for them: submit with --cpus-per-task {per_task} or more"


def _worker_threads(
    ranks: tuple[int, ...], servers: tuple[int, ...], cpus: tuple[int, ...], server_threads: int
) -> int:
    shares = [
        (cpus_here - servers_here * server_threads) // (ranks_here - servers_here)
        for ranks_here, servers_here, cpus_here in zip(ranks, servers, cpus, strict=True)
        if ranks_here > servers_here
    ]
    return max(1, min(shares, default=1))


def _list(counts: tuple[int, ...]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else ",".join(map(str, counts))
