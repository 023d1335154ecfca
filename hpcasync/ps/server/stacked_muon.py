"""Muon's steps of all matrices of a shard at once, those of one shape as a stack: what a GPU makes in few launches.

A step of one matrix is some fifty operations, and a GPU takes longer to be told of them than to compute them.
"""

from itertools import groupby

import torch

from hpcasync.ps.server.block_update import BlockUpdate, publish
from hpcasync.ps.server.dealt_muon import Dealing
from hpcasync.ps.server.muon import ADAMS_SIZE, Muon, orthogonal_stack

# Of a stack, whose iterations hold three copies in bfloat16.
_MOST_ELEMENTS = 1 << 24


class StackedMuon:
    """The steps of matrices that lie in one vector.

    Args:
        optimizers: of the matrices, by where each begins in the shard; all with the same settings. They keep the
            momentum.
        dtype: of the iterations.
    """

    def __init__(self, optimizers: dict[int, Muon], *, dtype: torch.dtype = torch.bfloat16) -> None:
        by_shape = sorted(optimizers.items(), key=lambda item: item[1].shape)
        self._starts = [start for start, _ in by_shape]
        self._optimizers = [optimizer for _, optimizer in by_shape]
        self._sizes = [rows * columns for rows, columns in (optimizer.shape for optimizer in self._optimizers)]
        self._blocks: list[torch.nn.Parameter] = [each.param_groups[0]["params"][0] for each in self._optimizers]
        self._stacks: list[tuple[int, int, int]] = []
        for (rows, columns), alike in groupby(each.shape for each in self._optimizers):
            left, most = len(list(alike)), max(1, _MOST_ELEMENTS // (rows * columns))
            while left:
                self._stacks.append((min(left, most), rows, columns))
                left -= self._stacks[-1][0]
        self._dtype = dtype
        self._dealing: Dealing | None = None

    def deal(self, dealing: Dealing) -> None:
        """From now on each rank iterates some of the matrices of each stack, and all have the sum."""
        self._dealing = dealing

    @torch.no_grad()
    def make(self, update: BlockUpdate) -> None:
        """Step all matrices, average and publish; `update` is of the whole shard, and its scratch as long."""
        vector = update.scratch[: sum(self._sizes)]
        along = list(torch.split(vector, self._sizes))
        group = self._optimizers[0].param_groups[0]
        matrices = [block.detach()[:size] for block, size in zip(self._blocks, self._sizes, strict=True)]
        first, *others = update.parts
        torch._foreach_copy_(along, self._of_each(first))
        for part in others:
            torch._foreach_add_(along, self._of_each(part))
        vector *= update.scale
        momenta = [
            optimizer.momentum(block)[:size]
            for optimizer, block, size in zip(self._optimizers, self._blocks, self._sizes, strict=True)
        ]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, along)
        if group["nesterov"]:
            torch._foreach_add_(along, momenta, alpha=group["momentum"])
        else:
            torch._foreach_copy_(along, momenta)
        self._iterate(vector)
        vector *= -group["lr"] * ADAMS_SIZE
        if group["weight_decay"]:
            torch._foreach_add_(along, matrices, alpha=-group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, along)
        if update.average is not None:
            torch._foreach_lerp_(self._of_each(update.average), matrices, update.average_weight)
        if update.published is None:
            return
        if update.lookahead:
            vector *= update.lookahead
            torch._foreach_add_(along, matrices)
        ahead = along if update.lookahead else matrices
        targets = self._of_each(update.published)
        if update.published.device == vector.device:
            torch._foreach_copy_(targets, ahead)
        else:
            for target, values in zip(targets, ahead, strict=True):
                publish(target, values)
        for start, size, block in zip(self._starts, self._sizes, self._blocks, strict=True):
            if block.numel() > size:  # what follows a matrix does not change, but readers have all of a version
                publish(update.published[start + size : start + block.numel()], block.detach()[size:])

    def _of_each(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The matrices' parts of a vector as long as the shard."""
        return [vector[start : start + size] for start, size in zip(self._starts, self._sizes, strict=True)]

    def _iterate(self, vector: torch.Tensor) -> None:
        """Replace the matrices by what steps of size one go along."""
        begin = 0
        for index, (number, rows, columns) in enumerate(self._stacks):
            stack = vector[begin : begin + number * rows * columns].view(number, rows, columns)
            begin += stack.numel()
            first, stop = self._own(index, number)
            stack[:first].zero_()
            stack[stop:].zero_()
            if first < stop:
                part = stack[first:stop]
                part.copy_(orthogonal_stack(part, self._dtype)).mul_(max(rows, columns) ** 0.5)
        if self._dealing is not None:
            self._dealing.sum(vector)

    def _own(self, index: int, number: int) -> tuple[int, int]:
        """Which matrices of a stack this rank iterates."""
        if self._dealing is None:
            return 0, number
        # Not always the same rank, where a stack has fewer matrices than there are ranks.
        turn = (self._dealing.rank + index) % self._dealing.num_ranks
        return number * turn // self._dealing.num_ranks, number * (turn + 1) // self._dealing.num_ranks
