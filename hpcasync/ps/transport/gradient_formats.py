"""How a gradient travels: as it is, rounded to bfloat16, or as its largest elements only.

One object per worker holds what the worker must keep (staging buffers, the residual); servers use the static part: the
size of a slot, and adding a slot to a sum.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from hpcasync.choices import GradientFormat
from hpcasync.comm.mapped_window import MappedWindow
from hpcasync.comm.shards import Shard
from hpcasync.comm.windows import PIECE_BYTES, DataWindow

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_HEADER_BYTES = 64
_SAMPLE_ELEMENTS = 1 << 16


@dataclass(frozen=True)
class SlotAddress:
    """Where the gradient of a push lies: `offset` bytes into the memory of `rank`."""

    window: DataWindow | MappedWindow
    rank: int
    offset: int


class Wire(Protocol):
    """A format of gradients.

    Attributes:
        has_blocks: whether a part of a shard can be read alone; else `start` is 0 and `total` a whole shard.
        travels_as: the type of elements, which `write` may be given already.
    """

    has_blocks: bool
    travels_as: torch.dtype

    def slot_bytes(self, num_elements: int) -> int:
        """Bytes of a slot for a shard of this size."""

    def write(self, address: SlotAddress, gradient: torch.Tensor, shard: Shard, part: Shard | None = None) -> None:
        """Write a shard of a [num_elements] float32 gradient into a server's slot; complete after `window.flush`.

        With `has_blocks` also a `part` of the shard, in its place.
        """

    def add(self, total: torch.Tensor, slot: torch.Tensor, start: int = 0) -> None:
        """Add the gradient in a slot (uint8) to the sum of a shard, or of its elements from `start`.

        The sum is [size] float32. The slot is where the window is; the sum may be on another device.
        """

    def copy(self, total: torch.Tensor, slot: torch.Tensor, start: int = 0) -> None:
        """Like `add` to a sum of zeros, whatever `total` holds."""

    def view(self, slot: torch.Tensor, start: int, num_elements: int) -> torch.Tensor | None:
        """Elements of the gradient in a slot where they lie, if that is how they are added."""


def make_wire(gradient_format: GradientFormat, fraction: float) -> Wire:
    return TopKWire(fraction) if gradient_format == "topk" else DenseWire(_DTYPES[gradient_format])


class DenseWire:
    """Every element, in one type."""

    has_blocks = True

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = self.travels_as = dtype
        self._staged: dict[tuple[int, int, int], torch.Tensor] = {}

    def slot_bytes(self, num_elements: int) -> int:
        return num_elements * self._dtype.itemsize

    def write(self, address: SlotAddress, gradient: torch.Tensor, shard: Shard, part: Shard | None = None) -> None:
        """Copy, converting on the way: into shared memory directly, for a Put by way of a buffer."""
        part = shard if part is None else part
        values = gradient[part.start : part.stop]
        window, rank = address.window, address.rank
        offset = address.offset + self.slot_bytes(part.start - shard.start)
        if window.is_local(rank) or values.dtype == self._dtype:
            window.write(rank, offset, values, self._dtype)
            return
        key = rank, part.start, part.size
        if key not in self._staged:
            self._staged[key] = torch.empty(part.size, dtype=self._dtype)
        # A piece is on its way while the next one is converted.
        num_elements = PIECE_BYTES // self._dtype.itemsize
        for start in range(0, part.size, num_elements):
            piece = self._staged[key][start : start + num_elements]
            piece.copy_(values[start : start + num_elements])
            window.write(rank, offset + self.slot_bytes(start), piece)

    def add(self, total: torch.Tensor, slot: torch.Tensor, start: int = 0) -> None:
        total.add_(self._part(slot, start, total.numel()).to(total.device))

    def copy(self, total: torch.Tensor, slot: torch.Tensor, start: int = 0) -> None:
        part = self._part(slot, start, total.numel())
        # From the host to a GPU torch would convert first: on the host, in more bytes.
        total.copy_(part if part.dtype == total.dtype else part.to(total.device))

    def view(self, slot: torch.Tensor, start: int, num_elements: int) -> torch.Tensor | None:
        return self._part(slot, start, num_elements) if self._dtype == torch.float32 else None

    def _part(self, slot: torch.Tensor, start: int, num_elements: int) -> torch.Tensor:
        return slot[self.slot_bytes(start) : self.slot_bytes(start + num_elements)].view(self._dtype)


class TopKWire:
    """The elements of largest magnitude of every shard; what is not sent is added to the worker's next gradient.

    Source: Aji & Heafield 2017, "Sparse Communication for Distributed Gradient Descent" (EMNLP, D17-1045), section 3;
    as there, the threshold comes from a sample. Here one per shard, and never more elements than fit the slot.

    Args:
        fraction: of the elements of a shard that are sent.

    Attributes:
        residual: [num_elements] float32 that has not been sent; None before the first write.
    """

    has_blocks = False
    travels_as = torch.float32

    def __init__(self, fraction: float) -> None:
        assert 0 < fraction <= 1
        self._fraction = fraction
        self.residual: torch.Tensor | None = None
        self._staged: dict[int, torch.Tensor] = {}

    def slot_bytes(self, num_elements: int) -> int:
        """The number of elements sent, then int32 positions, then float32 values."""
        return _HEADER_BYTES + 8 * self._capacity(num_elements)

    def write(self, address: SlotAddress, gradient: torch.Tensor, shard: Shard, part: Shard | None = None) -> None:
        """Send the largest elements of gradient plus residual, keep the rest."""
        assert part is None or part == shard
        if self.residual is None:
            self.residual = torch.zeros_like(gradient)
        residual = self.residual[shard.start : shard.stop].add_(gradient[shard.start : shard.stop])
        positions = self._choose(residual)
        values = residual[positions]
        residual[positions] = 0
        staged = self._staged[address.rank] = self._encode(positions.cpu(), values.cpu(), self._capacity(shard.size))
        address.window.write(address.rank, address.offset, staged)

    def add(self, total: torch.Tensor, slot: torch.Tensor, start: int = 0) -> None:
        assert start == 0
        num_sent = int(slot[:8].view(torch.int64))
        positions = slot[_HEADER_BYTES : _HEADER_BYTES + 4 * num_sent].view(torch.int32)
        values = slot[_HEADER_BYTES + 4 * self._capacity(total.numel()) :][: 4 * num_sent].view(torch.float32)
        total.index_add_(0, positions.to(total.device), values.to(total.device))

    def copy(self, total: torch.Tensor, slot: torch.Tensor, start: int = 0) -> None:
        self.add(total.zero_(), slot, start)

    def view(self, slot: torch.Tensor, start: int, num_elements: int) -> torch.Tensor | None:
        return None

    def _capacity(self, num_elements: int) -> int:
        # A sampled threshold lets some more through than the fraction; beyond that the rest stays in the residual.
        return min(num_elements, math.ceil(1.25 * self._fraction * num_elements))

    def _choose(self, values: torch.Tensor) -> torch.Tensor:
        magnitude = values.abs()
        step = max(1, values.numel() // _SAMPLE_ELEMENTS)
        sample = magnitude[::step]
        num_above = max(1, round(self._fraction * sample.numel()))
        threshold = sample.topk(num_above, sorted=True).values[-1]
        positions = torch.nonzero((magnitude >= threshold) & (magnitude > 0)).flatten()
        capacity = self._capacity(values.numel())
        if positions.numel() > capacity:
            positions = positions[magnitude[positions].topk(capacity, sorted=False).indices]
        return positions

    def _encode(self, positions: torch.Tensor, values: torch.Tensor, capacity: int) -> torch.Tensor:
        num_sent = positions.numel()
        staged = torch.zeros(_HEADER_BYTES + 4 * (capacity + num_sent), dtype=torch.uint8)
        staged[:8].view(torch.int64)[0] = num_sent
        staged[_HEADER_BYTES : _HEADER_BYTES + 4 * num_sent].view(torch.int32).copy_(positions)
        staged[_HEADER_BYTES + 4 * capacity :].view(torch.float32).copy_(values)
        return staged
