"""What a job asks SLURM for, as lines of its script."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hpcasync.errors import UserError

# gpu, gpu:2, gpu:a100, gpu:a100:2: type and number.
_GPUS = re.compile(r"\bgpu(?P<type>:[a-zA-Z][\w.-]*)?(?::(?P<number>\d+))?(?=,|$)")


@dataclass(frozen=True)
class Resources:
    """What a job, or one component of a heterogeneous job, asks for.

    Attributes:
        nodes: nodes.
        tasks_per_node: tasks, that is MPI ranks, on each.
        cpus_per_task: CPUs of a task.
        gpus_per_node: GPUs of each node; 0: none.
        partition, account, memory, constraint: SLURM's options of these names (--mem); empty: SLURM's default.
        gres: asks for the GPUs in the place of --gpus-per-node; empty: that does.
        extra: other options of sbatch, each whole.
    """

    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    partition: str = ""
    account: str = ""
    memory: str = ""
    constraint: str = ""
    gres: str = ""
    extra: tuple[str, ...] = ()

    @property
    def cpus_per_node(self) -> int:
        return self.tasks_per_node * self.cpus_per_task

    @property
    def num_tasks(self) -> int:
        return self.nodes * self.tasks_per_node

    def options(self) -> Iterator[str]:
        yield f"--nodes={self.nodes}"
        yield f"--ntasks-per-node={self.tasks_per_node}"
        yield f"--cpus-per-task={self.cpus_per_task}"
        if self.gres:
            yield f"--gres={self.gres}"
        elif self.gpus_per_node:
            yield f"--gpus-per-node={self.gpus_per_node}"
        for name, value in (
            ("partition", self.partition),
            ("account", self.account),
            ("mem", self.memory),
            ("constraint", self.constraint),
        ):
            if value:
                yield f"--{name}={value}"
        yield from self.extra


def whole_options(words: Sequence[str]) -> tuple[str, ...]:
    """Options of sbatch, each with its value."""
    options: list[str] = []
    for word in words:
        if word.startswith("-"):
            options.append(word)
        elif options:
            options[-1] += f"={word}" if options[-1].startswith("--") else word
        else:
            raise UserError(f"{shlex.join(words)}: {word!r} is no option of sbatch; they begin with -")
    return tuple(options)


def gpus_of_gres(gres: str) -> int:
    """GPUs that --gres asks for on each node, for example "gpu:a100:2"."""
    return sum(int(match["number"] or 1) for match in _GPUS.finditer(gres))


def with_gpus(gres: str, count: int) -> str:
    """The same generic resources with another number of GPUs; without any for 0."""
    parts = [_GPUS.sub(lambda match: f"gpu{match['type'] or ''}:{count}", part) for part in gres.split(",")]
    return ",".join(part for part in parts if count or not part.startswith("gpu"))
