"""Parts of the flat vector that are stepped with settings of their own, as an optimizer's parameter groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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
    """

    stop: int
    make_optimizer: OptimizerFactory
    settings: Callable[[float, int], dict[str, Any]] = lambda learning_rate, version: {"lr": learning_rate}
    is_whole: bool = False


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
