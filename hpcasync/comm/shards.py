"""Cutting the flat parameter vector into one contiguous shard per server; arithmetic only."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from hpcasync.errors import UserError

# 64 bytes of float32: a shard never shares a cache line with its neighbour.
ALIGNMENT = 16


@dataclass(frozen=True)
class Shard:
    """One server's slice [start, stop) of the flat parameter vector, in elements."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def overlap(self, part: "Shard") -> "Shard":
        """What it has in common with another slice; of no or negative size if that is nothing."""
        return Shard(max(part.start, self.start), min(part.stop, self.stop))


@dataclass(frozen=True)
class Stretch:
    """A part of the vector whose elements are stepped alike.

    Attributes:
        stop: where it ends; it begins where the one before it ends.
        cost: of an element's update, where one of Adam's has 1.
        is_whole: it must lie in one shard.
    """

    stop: int
    cost: float = 1.0
    is_whole: bool = False


def cut_shards(num_elements: int, num_servers: int, stretches: Sequence[Stretch] = ()) -> list[Shard]:
    """Cut `num_elements` into one shard per server, whose updates cost the same as far as what is whole lets them.

    One server after the other gets what is nearest to an equal part of what is left. Borders lie on the 64-byte
    alignment.

    Args:
        stretches: cover the vector; default: it may be cut anywhere, and all elements cost the same.

    Raises:
        UserError: there are too many servers.
    """
    borders = _Borders(stretches or [Stretch(num_elements)])
    # The last borders that leave something for 0, 1, 2, … shards after them.
    latest = [num_elements]
    while len(latest) < num_servers and latest[-1] > 0:
        latest.append(borders.last_at(latest[-1] - 1))
    if latest[-1] <= 0:
        most = len(latest) - 1
        is_cut = "" if most * ALIGNMENT >= num_elements else ", and what is stepped as a whole is not cut"
        raise UserError(
            f"{num_elements:,} parameters cannot be cut into {num_servers} shards: they are cut in pieces of "
            f"{ALIGNMENT}{is_cut}; use {most} server{'' if most == 1 else 's'} (roles.servers) or fewer",
            everywhere=True,
        )
    bounds = [0]
    for num_after in range(num_servers - 1, 0, -1):
        cost = borders.cost(bounds[-1])
        nearest = borders.nearest(cost + (borders.cost(num_elements) - cost) / (num_after + 1))
        bounds.append(min(max(nearest, borders.first_at(bounds[-1] + 1)), latest[num_after]))
    return [Shard(start, stop) for start, stop in pairwise([*bounds, num_elements])]


def cost_of_dearest(shards: Sequence[Shard], stretches: Sequence[Stretch]) -> float:
    """What the update of the dearest shard costs, where an equal part of all of them has 1."""
    borders = _Borders(stretches)
    dearest = max(borders.cost(shard.stop) - borders.cost(shard.start) for shard in shards)
    return dearest * len(shards) / borders.cost(shards[-1].stop)


class _Borders:
    """Where the vector may be cut, and what the elements before each of these places cost."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._stretches = stretches
        self._stops = [stretch.stop for stretch in stretches]
        self._starts = [0, *self._stops[:-1]]
        sizes = (stop - start for start, stop in zip(self._starts, self._stops, strict=True))
        costs = (size * stretch.cost for size, stretch in zip(sizes, stretches, strict=True))
        self._costs_before = list(accumulate(costs, initial=0.0))

    def cost(self, position: int) -> float:
        """Of all elements before a position."""
        number = self._number_at(position)
        return self._costs_before[number] + (position - self._starts[number]) * self._stretches[number].cost

    def last_at(self, position: int) -> int:
        """The last border at or before a position."""
        position -= position % ALIGNMENT
        while (whole := self._whole_around(position)) is not None:
            position = self._starts[whole] - self._starts[whole] % ALIGNMENT
        return position

    def first_at(self, position: int) -> int:
        """The first border at or after a position; the end of the vector is one."""
        position += -position % ALIGNMENT
        while (whole := self._whole_around(position)) is not None:
            position = self._stops[whole] + -self._stops[whole] % ALIGNMENT
        return min(position, self._stops[-1])

    def nearest(self, cost: float) -> int:
        """The border before which elements of nearly this cost lie."""
        number = min(bisect_right(self._costs_before, cost), len(self._stops)) - 1
        position = self._starts[number] + int((cost - self._costs_before[number]) / self._stretches[number].cost)
        around = self.last_at(position), self.first_at(position + 1)
        return min(around, key=lambda border: abs(self.cost(border) - cost))

    def _number_at(self, position: int) -> int:
        """Of the stretch with the element at a position; the last one at the end."""
        return min(bisect_right(self._stops, position), len(self._stops) - 1)

    def _whole_around(self, position: int) -> int | None:
        """The number of what is whole and would be cut there."""
        number = self._number_at(position)
        is_inside = self._starts[number] < position < self._stops[number]
        return number if is_inside and self._stretches[number].is_whole else None
