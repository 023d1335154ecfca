"""Which device and how many threads a rank computes with."""

from collections.abc import Sequence

import torch

from hpcasync.comm.roles import Roles
from hpcasync.config.schema import Config
from hpcasync.errors import UserError


def choose_device(config: Config, roles: Roles, world_rank: int) -> torch.device:
    """The CPU, or for a worker the GPU of its turn among the workers of its host.

    Raises:
        UserError: device=cuda on a host without a GPU.
    """
    if config.device == "cpu" or roles.is_server(world_rank):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if config.device == "cuda":
            raise UserError(
                f"device=cuda, but torch sees no GPU on {roles.hosts[world_rank]} (rank {world_rank}): "
                "use device=cpu or device=auto, or see `hpcasync doctor`"
            )
        return torch.device("cpu")
    neighbours = [rank for rank in roles.ranks_on_host(roles.hosts[world_rank]) if not roles.is_server(rank)]
    return torch.device("cuda", neighbours.index(world_rank) % torch.cuda.device_count())


def choose_server_device(config: Config, roles: Roles, world_rank: int) -> torch.device:
    """Where a server holds its shard: the CPU, or the GPU of its turn among the servers of its host.

    Raises:
        UserError: roles.server_device=cuda on a host without a GPU.
    """
    if config.roles.server_device == "cpu" or not roles.is_server(world_rank):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"roles.server_device=cuda, but torch sees no GPU on {roles.hosts[world_rank]} (rank {world_rank}): "
            "use roles.server_device=cpu, or see `hpcasync doctor`"
        )
    neighbours = [rank for rank in roles.ranks_on_host(roles.hosts[world_rank]) if roles.is_server(rank)]
    return torch.device("cuda", neighbours.index(world_rank) % torch.cuda.device_count())


def check_scoring_device(config: Config, roles: Roles, world_rank: int) -> None:
    """Refuse to score on a GPU that the coordinator's host, which scores, does not have.

    Raises:
        UserError: on the coordinator alone.
    """
    is_wanted = config.validation.score and config.validation.device == "cuda"
    if is_wanted and world_rank == roles.coordinator_rank and not torch.cuda.is_available():
        raise UserError(
            f"validation.device=cuda, but torch sees no GPU on {roles.hosts[world_rank]}, where snapshots are scored: "
            "use validation.device=cpu or validation.device=auto, or see `hpcasync doctor`"
        )


def choose_threads(config: Config, roles: Roles, world_rank: int, cores_of_ranks: Sequence[frozenset[int]]) -> int:
    """Threads that this rank computes with: unless configured, a worker's share of the cores that it may use.

    Args:
        config, roles: of the job.
        world_rank: this rank.
        cores_of_ranks: the cores that each world rank may run on, as numbered on its host. Workers of a host with the
            same cores share them; those that mpirun or the scheduler has bound apart do not.
    """
    if roles.is_server(world_rank):
        return config.roles.server_threads
    if config.roles.worker_threads is not None:
        return config.roles.worker_threads
    cores = cores_of_ranks[world_rank]
    neighbours = [rank for rank in roles.ranks_on_host(roles.hosts[world_rank]) if not roles.is_server(rank)]
    return max(1, len(cores) // sum(cores_of_ranks[rank] == cores for rank in neighbours))
