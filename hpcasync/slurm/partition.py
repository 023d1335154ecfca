"""What a cluster has, as `sinfo` tells, and whether a job fits it."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hpcasync.errors import UserError
from hpcasync.slurm.resources import Resources
from hpcasync.slurm.times import parse_time

# One line for each node of each partition.
SINFO = ("sinfo", "--noheader", "--Node", "--format", "%P|%N|%c|%G|%l")
# "gpu:4", "gpu:a100:4(S:0-1)", "gpu:2,mps:200"; "(null)" where a node has none.
_GPU = re.compile(r"\bgpu(?::[\w.-]+)?:(\d+)")


@dataclass(frozen=True)
class Node:
    """CPUs and GPUs of a node."""

    name: str
    num_cpus: int
    num_gpus: int


@dataclass(frozen=True)
class Partition:
    """A partition; `limit_seconds` is None where jobs may last for ever."""

    name: str
    is_default: bool
    limit: str
    limit_seconds: int | None
    nodes: tuple[Node, ...]


def parse_sinfo(text: str) -> list[Partition]:
    """Read the output of `SINFO`."""
    nodes: dict[tuple[str, str], list[Node]] = {}
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 5 or not fields[2].rstrip("+").isdecimal():
            raise UserError(f"sinfo said {line!r}, which is not partition|node|CPUs|GRES|limit: is SLURM itself well?")
        partition, name, cpus, gres, limit = fields
        gpus = sum(map(int, _GPU.findall(gres)))
        nodes.setdefault((partition, limit), []).append(Node(name, int(cpus.rstrip("+")), gpus))
    return [
        Partition(name.removesuffix("*"), name.endswith("*"), limit, parse_time(limit), tuple(members))
        for (name, limit), members in nodes.items()
    ]


def check_fit(resources: Resources, time: str, partitions: Sequence[Partition]) -> None:
    """Refuse what the partition can never start: SLURM itself may let it wait for ever."""
    partition = _find(resources.partition, partitions)
    limit = parse_time(time) if time else None
    if time and partition.limit_seconds is not None and (limit is None or limit > partition.limit_seconds):
        raise UserError(
            f"--time {time} is over the limit of partition {partition.name}, {partition.limit}: give less, or another "
            "--partition; a requeued job goes on from its checkpoint"
        )
    if resources.nodes > len(partition.nodes):
        raise UserError(
            f"--nodes {resources.nodes}: partition {partition.name} has {len(partition.nodes)} node(s); give fewer, or "
            "another --partition"
        )
    fitting = [node for node in partition.nodes if node.num_gpus >= resources.gpus_per_node]
    if len(fitting) < resources.nodes:
        most = max(node.num_gpus for node in partition.nodes)
        raise UserError(
            f"--gpus-per-node {resources.gpus_per_node}: {len(fitting)} node(s) of partition {partition.name} have so "
            f"many GPUs, {resources.nodes} are asked for, and the best has {most}; give fewer, or another --partition"
        )
    if sum(node.num_cpus >= resources.cpus_per_node for node in fitting) < resources.nodes:
        most = max(node.num_cpus for node in fitting)
        raise UserError(
            f"{resources.tasks_per_node} rank(s) of {resources.cpus_per_task} CPU(s) on a node: the nodes of partition "
            f"{partition.name} have at most {most} CPUs; give a smaller --cpus-per-task or --ntasks-per-node, or more "
            "--nodes"
        )


def _find(name: str, partitions: Sequence[Partition]) -> Partition:
    for partition in partitions:
        if partition.name == name if name else partition.is_default:
            return partition
    names = [partition.name for partition in partitions]
    if not name:
        raise UserError(f"this cluster has no default partition: give --partition, one of {', '.join(names)}")
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
    raise UserError(f"--partition {name}: there is no such partition; {hint}")
