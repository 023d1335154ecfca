"""Cutting the flat parameter vector into one contiguous shard per server; arithmetic only."""

from dataclasses import dataclass
from itertools import pairwise

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


def cut_shards(num_elements: int, num_servers: int) -> list[Shard]:
    """Cut `num_elements` into one shard per server, sizes equal up to the 64-byte alignment."""
    num_pieces = -(-num_elements // ALIGNMENT)
    if num_pieces < num_servers:
        raise ValueError(f"{num_elements} parameters cannot be cut into {num_servers} shards of {ALIGNMENT} or more")
    bounds = [min(num_elements, num_pieces * index // num_servers * ALIGNMENT) for index in range(num_servers + 1)]
    return [Shard(start, stop) for start, stop in pairwise(bounds)]
