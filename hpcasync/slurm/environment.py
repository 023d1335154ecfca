"""The one reader of what SLURM and MPI launchers put into a process's environment about the size of its job."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hpcasync.command_line import this_command_on
from hpcasync.errors import UserError
from hpcasync.launch.ranks import is_shell_of_srun

# SLURM's run-length form: "4(x2),1" is 4, 4, 1.
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")
# What a job or a step is told about itself. Where SLURM is found is no part of that.
_OF_A_JOB = re.compile(
    r"SLURM_(?!CONF$|CLUSTERS$)|SLURMD_|SRUN_|PMI_(RANK|SIZE|FD)|PMIX_(RANK|NAMESPACE|SERVER_)|OMPI_COMM_"
)


@dataclass(frozen=True)
class Allocation:
    """What SLURM gave to the job of this batch script, or to one component of a heterogeneous job.

    Attributes:
        tasks_per_node: tasks that were asked for, by node.
        cpus_per_node: CPUs of the job, by node.
        gpus_per_node: GPUs of the job on the node of the batch script; taken to be the same on the others. Not known of
            heterogeneous jobs.
        node_list: the nodes as SLURM abbreviates them, for example "node[1-4]".
    """

    tasks_per_node: tuple[int, ...]
    cpus_per_node: tuple[int, ...]
    gpus_per_node: int = 0
    node_list: str = ""

    @property
    def num_nodes(self) -> int:
        return len(self.tasks_per_node)

    @property
    def num_tasks(self) -> int:
        return sum(self.tasks_per_node)


def read_allocation(environment: Mapping[str, str] = os.environ) -> tuple[Allocation, ...]:
    """The allocation of a batch script, by component of the job: one, unless the job is heterogeneous."""
    if "SLURM_JOB_ID" not in environment:
        raise UserError("this is no job of SLURM (SLURM_JOB_ID is not set): start the script with sbatch")
    size = environment.get("SLURM_HET_SIZE", "")
    if not size.isdecimal():
        return (_read_component(environment, "", _count(environment, "SLURM_GPUS_ON_NODE")),)
    return tuple(_read_component(environment, f"_HET_GROUP_{index}", 0) for index in range(int(size)))


def _read_component(environment: Mapping[str, str], suffix: str, num_gpus: int) -> Allocation:
    tasks = _expand(environment, f"SLURM_TASKS_PER_NODE{suffix}")
    cpus = _expand(environment, f"SLURM_JOB_CPUS_PER_NODE{suffix}")
    if len(tasks) != len(cpus):
        raise UserError(
            f"SLURM_TASKS_PER_NODE{suffix} and SLURM_JOB_CPUS_PER_NODE{suffix} speak of {len(tasks)} and {len(cpus)} "
            "nodes: submit the job from a shell that is not itself inside an allocation"
        )
    return Allocation(tasks, cpus, num_gpus, environment.get(f"SLURM_JOB_NODELIST{suffix}", ""))


def allocated_cpus(environment: Mapping[str, str] = os.environ) -> int:
    """CPUs of this host that SLURM has given to the job; 0 where it says nothing of them, or outside SLURM."""
    if "SLURM_JOB_ID" not in environment:
        return 0
    on_nodes = environment.get("SLURM_JOB_CPUS_PER_NODE", "")
    of_all = _COUNT.fullmatch(on_nodes)  # all nodes alike; ranks of mpirun see the variables of the batch script's node
    text = of_all[1] if of_all else environment.get("SLURM_CPUS_ON_NODE", "")
    return int(text) if text.isdecimal() else 0


def without_job(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment to submit from, also within a job: a new one must not inherit its cores, memory or tasks."""
    return {name: value for name, value in environment.items() if not _OF_A_JOB.match(name)}


def check_world_size(world_size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to be one of several ranks that MPI did not connect.

    Started by an mpirun or srun that the MPI library does not understand, each process is alone in its MPI_COMM_WORLD
    and would train by itself, all of them writing the same files. What the innermost launcher announced counts: ranks
    of an mpirun inside an allocation are as many as it was told, however many tasks the job has.
    """
    for name, (launcher, cure) in _LAUNCHERS.items():
        value = environment.get(name, "")
        if name.startswith("SLURM_") and is_shell_of_srun(environment):
            continue
        if not value.isdecimal():
            continue
        if world_size < int(value):
            raise UserError(
                f"{launcher} started {value} processes ({name}={value}), but MPI_COMM_WORLD has {world_size}: the MPI "
                "library that mpi4py loads cannot be started by it, so that every process would train alone. "
                + cure.format(command=f"`{this_command_on(int(value))}`"),
                everywhere=True,
            )
        return


# Innermost first: ranks of mpirun on another node than the batch script's were started by its daemon, which is a step
# of SLURM with one task per node.
_LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": ("Open MPI's mpirun", "Use the mpirun of that library: {command} finds it"),
    "PMI_SIZE": (
        "mpiexec, or srun with PMI,",
        "Use the mpirun of that library: {command} finds it, also inside sbatch",
    ),
    "SLURM_STEP_NUM_TASKS": (
        "srun",
        "Use slurm/train-async.sbatch or slurm/train-sync.sbatch, or {command} inside sbatch; for single "
        "processes that belong to no job, srun -n 1 each",
    ),
}


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name) or "0"
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{name}={text!r} is not what SLURM sets in a batch script, for example 4")
    return int(text)


def _expand(environment: Mapping[str, str], name: str) -> tuple[int, ...]:
    text = environment.get(name, "")
    parts = [_COUNT.fullmatch(part) for part in text.split(",")]
    if not all(parts):
        raise UserError(f"{name}={text!r} is not what SLURM sets in a batch script, for example 4(x2),1")
    return tuple(int(part[1]) for part in parts if part for _ in range(int(part[2] or 1)))
