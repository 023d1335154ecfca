"""How a training job fills the allocation of a batch script: arithmetic on configuration and allocation alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcasync.config import Config
from hpcasync.errors import UserError
from hpcasync.slurm.environment import Allocation

Kind = Literal["sync", "async", "any"]


@dataclass(frozen=True)
class JobPlan:
    """What a batch script starts.

    Attributes:
        run_dir: the directory of the run.
        num_ranks: ranks on all nodes.
        placement: options that mpirun needs to put them there.
        overrides: `key=value` for what the allocation decides.
        description: for the job's log, one line.
    """

    run_dir: Path
    num_ranks: int
    placement: tuple[str, ...]
    overrides: tuple[str, ...]
    description: str


def plan_job(config: Config, allocation: Allocation, kind: Kind) -> JobPlan:
    """Choose ranks, servers and threads.

    One rank for each task that was asked for; where the job has GPUs, at least so many that each GPU has a worker.
    One server beside the workers of each node, unless the configuration says how many. The CPUs that are not the
    servers' are shared by the workers as threads, unless the configuration says how many.

    Args:
        config: the resolved configuration.
        allocation: what SLURM gave.
        kind: modes that the script is for.

    Raises:
        UserError: the mode is another script's, or the ranks do not suffice.
    """
    _check_mode(config, kind)
    num_nodes = allocation.num_nodes
    is_sync = config.mode == "sync"
    num_servers = 0 if is_sync else config.roles.servers if _is_set(config, "servers") else num_nodes
    servers = _spread(num_servers, num_nodes)
    num_gpus = 0 if config.device == "cpu" else allocation.gpus_per_node
    ranks = allocation.tasks_per_node
    placement: tuple[str, ...] = ()
    if num_gpus and min(ranks) < num_gpus + servers[0]:
        per_node = max(*ranks, num_gpus + servers[0])
        ranks = (per_node,) * num_nodes
        # SLURM's tasks, which mpirun takes for slots, are fewer.
        placement = ("--map-by", f"ppr:{per_node}:node:oversubscribe")
    _check_room(ranks, num_servers)
    overrides = [] if is_sync else [f"roles.servers={num_servers}"]
    if not _is_set(config, "worker_threads"):
        reserved = config.roles.server_threads
        overrides.append(f"roles.worker_threads={_worker_threads(ranks, servers, allocation.cpus_per_node, reserved)}")
    return JobPlan(
        run_dir=config.output_dir,
        num_ranks=sum(ranks),
        placement=placement,
        overrides=tuple(overrides),
        description=f"{num_nodes} node(s), ranks per node {_list(ranks)}: {num_servers} server(s) and "
        f"{sum(ranks) - num_servers} worker(s); CPUs per node {_list(allocation.cpus_per_node)}, GPUs {num_gpus}; "
        f"{' '.join(overrides)}",
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
            f"with more tasks, for example sbatch --ntasks-per-node {per_node} …, or set roles.servers"
        )


def _is_set(config: Config, key: str) -> bool:
    return key in config.roles.model_fields_set and getattr(config.roles, key) is not None


def _spread(count: int, num_nodes: int) -> tuple[int, ...]:
    """The share of each node, as `comm.roles.assign_roles` deals servers out to hosts with room for them."""
    return tuple(count // num_nodes + (node < count % num_nodes) for node in range(num_nodes))


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
