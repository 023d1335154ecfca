"""What each rank computes with: its cores, threads and device, settled once at the start of a job."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mpi4py import MPI

from hpcasync.comm.roles import Roles
from hpcasync.config import Config
from hpcasync.train.cores import bind, describe_cores, share_cores
from hpcasync.train.devices import check_scoring_device, choose_device, choose_threads


@dataclass(frozen=True)
class Resources:
    """What this rank computes with, and for people what all ranks do.

    Attributes:
        num_threads: intra-op threads of this rank.
        worker_threads: those of the first worker.
        device: of this rank.
        lines: the decisions for all ranks, host by host.
    """

    num_threads: int
    worker_threads: int
    device: torch.device
    lines: tuple[str, ...]


def settle_resources(config: Config, roles: Roles, comm: MPI.Intracomm) -> Resources:
    """Choose cores, threads and device of this rank and set the first two (collective).

    Raises:
        UserError: a GPU is asked for and not there; only once all ranks have come so far.
    """
    cores = comm.allgather(frozenset(os.sched_getaffinity(0)))
    threads = [choose_threads(config, roles, rank, cores) for rank in range(comm.size)]
    if config.roles.bind == "auto":
        cores = share_cores(roles, threads, cores)
        bind(cores[comm.rank])
    torch.set_num_threads(threads[comm.rank])
    check_scoring_device(config, roles, comm.rank)
    device = choose_device(config, roles, comm.rank)
    lines = (*describe_cores(roles, cores), *describe_devices(config, roles))
    return Resources(threads[comm.rank], threads[roles.worker_ranks[0]], device, lines)


def describe_devices(config: Config, roles: Roles) -> Sequence[str]:
    """The GPU of each worker, host by host; nothing where all compute on the CPU."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return []
    lines = []
    for host in dict.fromkeys(roles.hosts):
        workers = [rank for rank in roles.ranks_on_host(host) if not roles.is_server(rank)]
        if workers:
            chosen = ", ".join(f"rank {rank} {choose_device(config, roles, rank)}" for rank in workers)
            lines.append(f"GPUs of {host}: {chosen}")
    return lines
