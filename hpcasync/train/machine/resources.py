"""What each rank computes with: its cores, threads and device, settled once at the start of a job."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mpi4py import MPI

from hpcasync.comm.mpi import collectively
from hpcasync.comm.roles import Roles
from hpcasync.config.schema import Config
from hpcasync.train.machine.cores import bind, describe_cores, share_cores
from hpcasync.train.machine.devices import check_scoring_device, choose_device, choose_server_device, choose_threads


@dataclass(frozen=True)
class Resources:
    """What this rank computes with, and for people what all ranks do.

    Attributes:
        num_threads: intra-op threads of a worker, threads of a server's updates (`ps.server.block_threads`).
        worker_threads: those of the first worker.
        device: that this rank computes gradients with.
        server_device: where this rank holds a shard, if it is a server.
        lines: the decisions for all ranks, host by host.
    """

    num_threads: int
    worker_threads: int
    device: torch.device
    server_device: torch.device
    lines: tuple[str, ...]


def settle_resources(config: Config, roles: Roles, comm: MPI.Intracomm) -> Resources:
    """Choose cores, threads and device of this rank and set the first two (collective).

    Raises:
        UserError: on every rank, if a GPU is asked for on a rank whose host has none.
    """
    cores = comm.allgather(frozenset(os.sched_getaffinity(0)))
    threads = [choose_threads(config, roles, rank, cores) for rank in range(comm.size)]
    if config.roles.bind == "auto":
        cores = share_cores(roles, threads, cores)
        bind(cores[comm.rank])
    torch.set_num_threads(1 if roles.is_server(comm.rank) else threads[comm.rank])
    device, server_device = collectively(comm, lambda: _choose_devices(config, roles, comm.rank))
    used = server_device if roles.is_server(comm.rank) else device
    # Gathered, since the coordinator's host need not have what the workers' hosts have.
    lines = (*describe_cores(roles, cores), *describe_gpus(roles, comm.allgather(str(used))))
    return Resources(threads[comm.rank], threads[roles.worker_ranks[0]], device, server_device, lines)


def describe_gpus(roles: Roles, devices: Sequence[str]) -> list[str]:
    """The GPU of each rank that has one, host by host; nothing for hosts where all compute on the CPU.

    Args:
        roles: of the job.
        devices: torch's name of the device of each world rank.
    """
    lines = []
    for host in dict.fromkeys(roles.hosts):
        chosen = [f"rank {rank} {devices[rank]}" for rank in roles.ranks_on_host(host) if devices[rank] != "cpu"]
        if chosen:
            lines.append(f"GPUs of {host}: {', '.join(chosen)}")
    return lines


def _choose_devices(config: Config, roles: Roles, world_rank: int) -> tuple[torch.device, torch.device]:
    check_scoring_device(config, roles, world_rank)
    return choose_device(config, roles, world_rank), choose_server_device(config, roles, world_rank)
