"""What each rank computes with: its cores, threads and device, settled once at the start of a job."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mpi4py import MPI

from hpcasync import device_kernels
from hpcasync.comm.mpi import collectively
from hpcasync.comm.roles import Roles
from hpcasync.config.schema import Config, RunConfig
from hpcasync.errors import UserError
from hpcasync.train.machine.cores import are_own, bind, describe_cores, numa_nodes, share_cores
from hpcasync.train.machine.devices import GpuPlan, choose_threads, plan_gpus
from hpcasync.train.machine.gpus import SCORING_GPU_VARIABLE, Gpu, narrow_to, see_gpus, take


@dataclass(frozen=True)
class Resources:
    """What this rank computes with, and for people what all ranks do.

    Attributes:
        num_threads: intra-op threads of a worker, threads of a server's updates (`ps.server.block_threads`).
        worker_threads, server_threads: those of the first worker, and of the server that has fewest (0: there is none).
        device: that this rank computes gradients with.
        server_device: where this rank holds a shard, if it is a server.
        lines: the decisions for all ranks, host by host.
    """

    num_threads: int
    worker_threads: int
    server_threads: int
    device: torch.device
    server_device: torch.device
    lines: tuple[str, ...]


def settle_resources(config: RunConfig, roles: Roles, comm: MPI.Intracomm, num_allocated: int = 0) -> Resources:
    """Choose cores, threads and device of this rank and set the first two (collective).

    Args:
        num_allocated: CPUs of this host that a scheduler has given to the job; 0: there is none.

    Raises:
        UserError: on every rank, if a GPU is asked for on a rank whose host has none.
    """
    seen = comm.allgather(see_gpus())
    plan = plan_gpus(config, roles, seen)
    cores = comm.allgather(frozenset(os.sched_getaffinity(0)))
    threads = [choose_threads(config, roles, rank, cores, plan.gpus) for rank in range(comm.size)]
    if config.roles.bind != "none":
        num_of_host = os.cpu_count() or 1
        own = are_own(cores[comm.rank], num_of_host=num_of_host, num_allocated=num_allocated)
        are_own_of_ranks = comm.allgather(own or config.roles.bind == "always")
        near = [gpu.node if gpu is not None else None for gpu in plan.gpus]
        cores = share_cores(roles, threads, cores, are_own_of_ranks, comm.allgather(numa_nodes()), near)
        bind(cores[comm.rank])
    torch.set_num_threads(1 if roles.is_server(comm.rank) else threads[comm.rank])
    os.environ[SCORING_GPU_VARIABLE] = plan.scoring.visible if plan.scoring is not None else ""
    if plan.gpus[comm.rank] is None and seen[comm.rank].gpus:
        narrow_to("")  # a program would compute on the first one, and with it all ranks of the host that have none
    used = collectively(comm, lambda: _start_gpu(plan.gpus[comm.rank], roles, comm.rank))
    is_server = roles.is_server(comm.rank)
    cpu = torch.device("cpu")
    kernels = describe_kernels(comm.allgather(device_kernels.lack() if used.type == "cuda" else None))
    lines = (*describe_cores(roles, cores), *describe_gpus(config, roles, plan), *kernels)
    device, server_device = (cpu, used) if is_server else (used, cpu)
    of_servers = min((threads[rank] for rank in roles.server_ranks), default=0)
    return Resources(threads[comm.rank], threads[roles.worker_ranks[0]], of_servers, device, server_device, lines)


def describe_gpus(config: RunConfig, roles: Roles, plan: GpuPlan) -> list[str]:
    """The GPU of each rank that has one, host by host, and of the scores; nothing where all compute on the CPU."""
    lines = []
    for host in dict.fromkeys(roles.hosts):
        chosen = [f"rank {rank} {plan.gpus[rank]}" for rank in roles.ranks_on_host(host) if plan.gpus[rank]]
        if chosen:
            lines.append(f"GPUs of {host}: {', '.join(chosen)}")
    if (lines or plan.scoring) and config.validation.score:
        shares = f", which rank {plan.scoring_shares_with[0]} computes on" if plan.scoring_shares_with else ""
        lines.append(f"snapshots are scored on {plan.scoring or 'the CPU'}{shares}")
    has_muon = isinstance(config, Config) and config.optimizer.name == "muon"
    if has_muon and any(plan.gpus) and any(plan.gpus[rank] is None for rank in roles.server_ranks):
        lines.append(
            "Muon's updates take long on the servers' CPUs: set roles.server_device=cuda, or optimizer.name=adam"
        )
    return lines


def describe_kernels(lacks: Sequence[str | None]) -> list[str]:
    """How ranks on GPUs compute the loss and make updates; a line, if there are any.

    Args:
        lacks: why each rank has no kernels for that (`device_kernels.lack`); None: it has no GPU.

    Raises:
        UserError: some ranks have them, and some do not: results would depend on who computes them.
    """
    on_gpus = {rank: lack for rank, lack in enumerate(lacks) if lack is not None}
    without = [rank for rank, lack in on_gpus.items() if lack]
    if without and len(without) < len(on_gpus):
        raise UserError(
            f"rank {without[0]} has no kernels for its GPU ({on_gpus[without[0]]}), but other ranks have: install the "
            "same torch and Triton everywhere, and a C compiler, which Triton needs"
        )
    if not on_gpus:
        return []
    if not without:
        return ["loss and updates on GPUs: in one pass over memory, by kernels in Triton"]
    return [f"loss and updates on GPUs: by torch, in a pass for each operation; no kernels: {on_gpus[without[0]]}"]


def _start_gpu(gpu: Gpu | None, roles: Roles, rank: int) -> torch.device:
    """Let this process see its GPU alone: other contexts on it would only take memory."""
    if gpu is None:
        return torch.device("cpu")
    try:
        device = torch.device("cuda", take(gpu))
        torch.cuda.set_device(device)
        torch.ones(1, device=device).item()  # it may be another process's alone, or too old for this torch
    except (RuntimeError, UserError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"rank {rank} cannot compute on {gpu} of {roles.hosts[rank]}: {said}; use device=cpu (a server: "
            "roles.server_device=cpu), or see `hpcasync doctor`"
        ) from error
    return device
