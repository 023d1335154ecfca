"""Muon's iterations shared by ranks that all make the same steps, as those of synchronous training do."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hpcasync.ps.server.muon import Muon, cost_of_element


@dataclass(frozen=True)
class Dealing:
    """Ranks that hold the same parameters and make the same steps.

    Attributes:
        rank, num_ranks: of this one, and of all.
        sum: over all ranks, in place.
    """

    rank: int
    num_ranks: int
    sum: Callable[[torch.Tensor], None]


class DealtMuon:
    """What Muon's steps go along, computed by several ranks: each for some of the matrices, and all have the sum.

    Args:
        optimizers: of all matrices, by the number of their block; they keep their momentum on every rank.
    """

    def __init__(self, dealing: Dealing, optimizers: dict[int, Muon]) -> None:
        self._dealing = dealing
        self._optimizers = optimizers
        sizes = [rows * columns for rows, columns in (optimizer.shape for optimizer in optimizers.values())]
        self._vector = torch.zeros(sum(sizes))
        for optimizer, part in zip(optimizers.values(), torch.split(self._vector, sizes), strict=True):
            optimizer.along = part.view(optimizer.shape)
        costs = {
            number: size * cost_of_element(optimizer.shape)
            for (number, optimizer), size in zip(optimizers.items(), sizes, strict=True)
        }
        self._own = []
        # The dearest first, each to who has least to do.
        dealt = [0.0] * dealing.num_ranks
        for number in sorted(costs, key=lambda number: -costs[number]):
            rank = dealt.index(min(dealt))
            dealt[rank] += costs[number]
            if rank == dealing.rank:
                self._own.append(number)

    def compute(self, gradient: Callable[[int], torch.Tensor]) -> None:
        """`gradient` gives that of a block."""
        self._vector.zero_()
        for number in self._own:
            optimizer = self._optimizers[number]
            assert optimizer.along is not None
            optimizer.along.copy_(optimizer.compute_along(gradient(number)))
        self._dealing.sum(self._vector)
