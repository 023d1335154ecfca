"""Parts of the flat vector that are stepped with settings of their own, as an optimizer's parameter groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpcasync.comm.shards import Shard, Stretch, cost_of_dearest, cut_shards

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class ParameterGroup:
    """A run of the flat vector, of one or several tensors.

    Attributes:
        stop: where it ends in the whole vector; it begins where the group before it ends.
        make_optimizer: builds the optimizer of a block of it.
        settings: what the optimizers of its blocks are set to before a step, given the update's learning rate and the
            version that it makes; called once for an update.
        is_whole: its optimizer needs all of it at once: it is never cut.
        cost: of an element's step, where one of Adam's has 1; servers share the costs.
    """

    stop: int
    make_optimizer: OptimizerFactory
    settings: Callable[[float, int], dict[str, Any]] = lambda learning_rate, version: {"lr": learning_rate}
    is_whole: bool = False
    cost: float = 1.0


@dataclass(frozen=True)
class Block:
    """Elements [start, stop) of a shard that are stepped at once, and the number of their group."""

    start: int
    stop: int
    group: int


# How a program says what steps its parameters: alike, or group by group.
Optimizers = OptimizerFactory | Sequence[ParameterGroup]


def groups_of(optimizers: Optimizers, num_elements: int) -> Sequence[ParameterGroup]:
    return [ParameterGroup(num_elements, optimizers)] if callable(optimizers) else optimizers


def cut_in_shards(optimizers: Optimizers, num_elements: int, num_servers: int) -> list[Shard]:
    """One shard per server, none of which ends within a group that is whole (`comm.shards.cut_shards`)."""
    return cut_shards(num_elements, num_servers, _stretches(optimizers, num_elements))


def cost_of_dearest_shard(optimizers: Optimizers, num_elements: int, num_servers: int) -> float:
    """What the update of the dearest of these shards costs, where an equal part of all of them has 1."""
    shards = cut_in_shards(optimizers, num_elements, num_servers)
    return cost_of_dearest(shards, _stretches(optimizers, num_elements))


def _stretches(optimizers: Optimizers, num_elements: int) -> list[Stretch]:
    return [Stretch(group.stop, group.cost, group.is_whole) for group in groups_of(optimizers, num_elements)]


def cut_in_blocks(groups: Sequence[ParameterGroup], start: int, size: int, most_elements: int) -> list[Block]:
    """The blocks of a shard of `size` elements that begins at `start` in the whole vector; none is of two groups."""
    blocks, begin, first = [], 0, 0
    for number, group in enumerate(groups):
        end = min(group.stop - start, size)
        is_cut = begin < end and (start + begin > first or group.stop > start + size)
        assert not (group.is_whole and is_cut), "what is stepped as a whole lies in one shard"
        first = group.stop
        while begin < end:
            stop = end if group.is_whole else min(begin + most_elements, end)
            blocks.append(Block(begin, stop, number))
            begin = stop
    assert begin == size, "the groups cover the vector"
    return blocks
