"""What a process can know of its MPI job before MPI is started: from the environment that its launcher set."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

# Rank and size as Open MPI, hydra (MPICH, Intel MPI, MVAPICH) and srun name them. Ranks of an mpirun inside a SLURM
# allocation have SLURM's own variables too, which describe the batch script: these come last.
_RANK_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
# Set in the shell that `srun --pty`, or salloc with an interactive step, starts for a person. There is one, however
# many tasks srun was asked for.
_SHELL_VARIABLES = ("SLURM_PTY_PORT", "SLURM_PTY_WIN_COL")


@dataclass(frozen=True)
class JobRank:
    """The place of this process in its job.

    Attributes:
        world_rank: rank in COMM_WORLD.
        num_ranks: size of COMM_WORLD.
        job_name: the same on all ranks of the job that run on one host, and on no other job there.
    """

    world_rank: int
    num_ranks: int
    job_name: str

    def __str__(self) -> str:
        return f"rank {self.world_rank} of {self.num_ranks} on {socket.gethostname()}"


def rank_from_environment(environment: Mapping[str, str] = os.environ) -> JobRank | None:
    """The place in a job of several ranks; None for a process on its own, or one whose launcher says nothing."""
    for rank_name, size_name in _RANK_VARIABLES:
        if rank_name.startswith("SLURM_") and is_shell_of_srun(environment):
            continue
        rank, size = environment.get(rank_name, ""), environment.get(size_name, "")
        if rank.isdecimal() and size.isdecimal():
            return JobRank(int(rank), int(size), job_name(environment)) if int(size) > 1 else None
    return None


def is_shell_of_srun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether SLURM's variables about tasks are those of a person's shell, which is no rank of anything."""
    return any(name in environment for name in _SHELL_VARIABLES)


def is_task_of_srun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether srun alone, without an MPI that it knows, has started this process."""
    return not any(name in environment for name, _ in _RANK_VARIABLES[:-1]) and _RANK_VARIABLES[-1][0] in environment


def job_name(environment: Mapping[str, str] = os.environ) -> str:
    """A name that the ranks of a job on one host share, and that no other job there has."""
    # Hydra names its jobs nowhere; its ranks on a host have one proxy as their parent.
    return environment.get("PMIX_NAMESPACE") or f"{environment.get('SLURM_JOB_ID', '')}.{os.getppid()}"
