"""The sum of a group's gradients on one shard, made as late as can be.

Gradients stay in their slots until the update that applies them reads each block of all slots once, in cache: adding
each as it arrives would read and write the whole sum every time.
"""

import torch

from hpcasync.ps.shard_state import BLOCK_ELEMENTS
from hpcasync.ps.wire import Wire


class GroupSum:
    """Gradients added so far, some still in their slots.

    Args:
        size: elements of the shard.
        wire: how gradients lie in slots.
        device: of the sum; slots are in host memory.
    """

    def __init__(self, size: int, wire: Wire, device: torch.device | None = None) -> None:
        self._wire = wire
        self._vector = torch.zeros(size, dtype=torch.float32, device=device)
        self._block = torch.empty(min(size, BLOCK_ELEMENTS), dtype=torch.float32, device=device)
        self._has_vector = False
        self._slots: list[torch.Tensor] = []

    def add_slot(self, slot: torch.Tensor) -> None:
        """Add the gradient in a slot (uint8), which must stay as it is until `fold` or `clear`."""
        self._slots.append(slot)

    def add(self, gradient: torch.Tensor) -> None:
        """Add a [size] float32 gradient now."""
        self.fold()
        if self._has_vector:
            self._vector.add_(gradient)
        else:
            self._vector.copy_(gradient)
        self._has_vector = True

    def fold(self) -> None:
        """Read all slots: they are not needed any more."""
        for slot in self._slots:
            if self._has_vector:
                self._wire.add(self._vector, slot)
            else:
                self._wire.copy(self._vector, slot)
            self._has_vector = True
        self._slots.clear()

    def clear(self) -> None:
        """Begin a new group."""
        self._slots.clear()
        self._has_vector = False

    def squared_norm(self) -> float:
        """Sum of squares, accumulated over blocks in float64; folds on the way."""
        total = 0.0
        for start in range(0, self._vector.numel(), BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, self._vector.numel())
            block = self._vector[start:stop]
            if self._slots:
                self._sum_block(start, stop, block)
            total += float(block.dot(block))
        self._has_vector = True
        self._slots.clear()
        return total

    def block(self, start: int, stop: int) -> torch.Tensor:
        """The sum of elements [start, stop), at most a block, to be used up before the next call."""
        if not self._slots:
            return self._vector[start:stop]
        block = self._block[: stop - start]
        if self._has_vector:
            block.copy_(self._vector[start:stop])
        self._sum_block(start, stop, block)
        return block

    def _sum_block(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Add all slots to a block that holds the vector's part, if there is a vector."""
        first, *others = self._slots
        if self._has_vector:
            self._wire.add(block, first, start)
        else:
            self._wire.copy(block, first, start)
        for slot in others:
            self._wire.add(block, slot, start)
