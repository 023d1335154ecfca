"""The sum of a group's gradients on one shard.

Gradients can stay in their slots until the update that applies them reads each block of all slots once, in cache. A
server with nothing else to do folds them before that: the update then has less to read.
"""

from collections.abc import Callable

import torch

from hpcasync.ps.server import fused_apply
from hpcasync.ps.server.block_threads import BlockThreads, ThreadBlock
from hpcasync.ps.server.shard_state import block_elements, squared_norm
from hpcasync.ps.transport.gradient_formats import Wire


class GroupSum:
    """Gradients added so far, some still in their slots.

    Args:
        wire: how gradients lie in slots.
        device: of the sum; slots are in host memory, or on this device too.
        fused: sum by `fused_apply` where it can.
    """

    def __init__(
        self,
        size: int,
        wire: Wire,
        device: torch.device | None = None,
        threads: BlockThreads | None = None,
        *,
        fused: bool = True,
    ) -> None:
        self._wire = wire
        self._threads = BlockThreads() if threads is None else threads
        self._vector = torch.empty(size, dtype=torch.float32, device=device)
        self._is_fused = fused and fused_apply.is_available(self._vector.device)
        self._own_block = ThreadBlock(min(size, block_elements(self._vector)), self._vector.device)
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

    def whole(self) -> torch.Tensor:
        """The sum of what has been added, at least one gradient; folds on the way."""
        self.fold()
        return self._vector

    def clear(self) -> None:
        self._slots.clear()
        self._has_vector = False

    def squared_norm(self) -> float:
        """Sum of squares, accumulated over blocks in float64; folds on the way."""
        squares: dict[int, float] = {}

        def add_square(start: int, stop: int, block: torch.Tensor) -> None:
            parts = self._parts(start, stop)
            if self._slots and parts is not None and self._is_fused:
                squares[start] = fused_apply.sum_of_squares(parts, block)
                return
            if self._slots:
                self._sum_block(start, stop, block)
            squares[start] = squared_norm(block)

        self._for_all_blocks(add_square)
        self._has_vector = True
        self._slots.clear()
        return sum((squares[start] for start in sorted(squares)), 0.0)

    def block(self, start: int, stop: int) -> list[torch.Tensor]:
        """Vectors whose sum is elements [start, stop), at most a block; to be used before this thread's next call."""
        parts = self._parts(start, stop)
        if parts is not None:
            return parts
        block = self._own_block.first(stop - start)
        if self._has_vector:
            block.copy_(self._vector[start:stop])
        self._sum_block(start, stop, block)
        return [block]

    def _parts(self, start: int, stop: int) -> list[torch.Tensor] | None:
        """What has been added, where it lies, if it can be added up from there."""
        parts = [self._vector[start:stop]] if self._has_vector else []
        for slot in self._slots:
            view = self._wire.view(slot, start, stop - start)
            if view is None or view.device != self._vector.device:
                return None
            parts.append(view)
        return parts

    def _for_all_blocks(self, work: Callable[[int, int, torch.Tensor], None]) -> None:
        """Do work(start, stop, the vector's elements) for each block."""
        size = self._vector.numel()
        num_elements = block_elements(self._vector)
        starts = range(0, size, num_elements)

        def work_on(index: int) -> None:
            start, stop = starts[index], min(starts[index] + num_elements, size)
            work(start, stop, self._vector[start:stop])

        self._threads.run(len(starts), work_on)

    def _sum_block(self, start: int, stop: int, block: torch.Tensor) -> None:
        """Add all slots to a block that holds the vector's part, if there is a vector."""
        parts = self._parts(start, stop)
        if parts is not None and self._is_fused:
            fused_apply.sum_of_squares(parts, block)
            return
        first, *others = self._slots
        if self._has_vector:
            self._wire.add(block, first, start)
        else:
            self._wire.copy(block, first, start)
        for slot in others:
            self._wire.add(block, slot, start)
