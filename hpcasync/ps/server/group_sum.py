"""The sum of a group's gradients on one shard, made as late as can be.

Gradients stay in their slots until the update that applies them reads each block of all slots once, in cache: adding
each as it arrives would read and write the whole sum every time.
"""

import threading
from collections.abc import Callable

import torch

from hpcasync.ps.server.block_threads import BlockThreads
from hpcasync.ps.server.shard_state import BLOCK_ELEMENTS
from hpcasync.ps.transport.gradient_formats import Wire


class GroupSum:
    """Gradients added so far, some still in their slots.

    Args:
        size: elements of the shard.
        wire: how gradients lie in slots.
        device: of the sum; slots are in host memory.
        threads: that share the blocks; default: the caller's alone.
    """

    def __init__(
        self, size: int, wire: Wire, device: torch.device | None = None, threads: BlockThreads | None = None
    ) -> None:
        self._wire = wire
        self._threads = BlockThreads() if threads is None else threads
        self._vector = torch.zeros(size, dtype=torch.float32, device=device)
        self._scratch = threading.local()  # a block for each thread
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
        if not self._slots:
            return
        if self._wire.has_blocks:
            self._for_all_blocks(self._sum_block)
        else:
            self._sum_block(0, self._vector.numel(), self._vector)
        self._has_vector = True
        self._slots.clear()

    def clear(self) -> None:
        """Begin a new group."""
        self._slots.clear()
        self._has_vector = False

    def squared_norm(self) -> float:
        """Sum of squares, accumulated over blocks in float64; folds on the way."""
        squares: dict[int, float] = {}

        def add_square(start: int, stop: int, block: torch.Tensor) -> None:
            if self._slots:
                self._sum_block(start, stop, block)
            squares[start] = float(block.dot(block))

        self._for_all_blocks(add_square)
        self._has_vector = True
        self._slots.clear()
        return sum((squares[start] for start in sorted(squares)), 0.0)

    def block(self, start: int, stop: int, scale: float) -> torch.Tensor:
        """`scale` times the sum of elements [start, stop), at most a block; to be used before this thread's next call.

        Once only: gradients that have been added together before are scaled where they are.
        """
        if not self._slots:
            return self._vector[start:stop].mul_(scale)
        block = self._own_block()[: stop - start]
        if self._has_vector:
            torch.mul(self._vector[start:stop], scale, out=block)
        self._sum_block(start, stop, block, scale)
        return block

    def _own_block(self) -> torch.Tensor:
        block: torch.Tensor | None = getattr(self._scratch, "block", None)
        if block is None:
            size = min(self._vector.numel(), BLOCK_ELEMENTS)
            block = self._scratch.block = torch.empty(size, dtype=torch.float32, device=self._vector.device)
        return block

    def _for_all_blocks(self, work: Callable[[int, int, torch.Tensor], None]) -> None:
        """Do work(start, stop, the vector's elements) for each block."""
        size = self._vector.numel()
        starts = range(0, size, BLOCK_ELEMENTS)

        def work_on(index: int) -> None:
            start, stop = starts[index], min(starts[index] + BLOCK_ELEMENTS, size)
            work(start, stop, self._vector[start:stop])

        self._threads.run(len(starts), work_on)

    def _sum_block(self, start: int, stop: int, block: torch.Tensor, scale: float = 1.0) -> None:
        """Add `scale` times all slots to a block that holds the vector's part, if there is a vector."""
        first, *others = self._slots
        if self._has_vector:
            self._wire.add(block, first, start, scale)
        else:
            self._wire.copy(block, first, start, scale)
        for slot in others:
            self._wire.add(block, slot, start, scale)
