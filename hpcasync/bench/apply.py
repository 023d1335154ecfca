"""`hpcasync bench apply`: the sum of a group and one optimizer step, against the bytes that it has to move."""

from collections.abc import Iterator

import torch

from hpcasync.bench.memory import Bandwidth, seconds_of
from hpcasync.bench.rows import Row, rate_row, time_row
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.server import fused_apply
from hpcasync.ps.server.block_threads import BlockThreads
from hpcasync.ps.server.group_sum import GroupSum
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.transport.gradient_formats import DenseWire
from hpcasync.train.loop.optimizers import optimizer_factory


def bench_apply(num_elements: int, num_gradients: int, num_rounds: int, num_threads: int) -> Iterator[Row]:
    """Time updates of a server with everything on: Nesterov's numerator, averaged parameters, lookahead, publication.

    Bytes are those that any way has to move: every gradient is read once; parameters, moments and average are read and
    written; the published copy is written. As in STREAM, lines that are read only to be written to do not count.
    """
    torch.set_num_threads(num_threads)
    for name, clip in (("", False), (", clipped by the global norm", True)):
        what = f"sum of {num_gradients} gradients and Adam, {num_elements:,} parameters{name}"
        updates = {
            is_fused: _Update(num_elements, num_gradients, num_threads, clip=clip, fused=is_fused)
            for is_fused in {fused_apply.is_available(), False}
        }
        yield from _rows(what, updates, num_elements, num_rounds)


def _rows(what: str, updates: "dict[bool, _Update]", num_elements: int, num_rounds: int) -> Iterator[Row]:
    """Bytes per second of the way that servers take, then its time beside that of torch's operations, in turn."""
    bandwidth = Bandwidth(num_elements)
    for update in updates.values():
        update.run()
    bandwidth.gigabytes_per_second()
    seconds: dict[bool, list[float]] = {is_fused: [] for is_fused in updates}
    limits = []
    for _ in range(num_rounds):
        for is_fused, update in updates.items():
            seconds[is_fused].append(seconds_of(update.run))
            if is_fused == max(updates):
                limits.append(bandwidth.gigabytes_per_second())
    used = max(updates)
    values = [updates[used].num_bytes / each / 1e9 for each in seconds[used]]
    by = "compiled kernel" if used else "torch, no compiled kernel"
    note = f"{updates[used].num_bytes / num_elements:g} B each, {by}"
    yield rate_row(what, values, limits, "GB/s", goal=0.9, note=note)
    if used:
        yield time_row(
            "   time of an update; limit: by torch, a pass for each operation", seconds[True], seconds[False]
        )


class _Update:
    def __init__(self, num_elements: int, num_gradients: int, num_threads: int, *, clip: bool, fused: bool) -> None:
        self._clip = clip
        threads = BlockThreads(num_threads if fused else 1)  # torch has threads of its own
        make = optimizer_factory(OptimizerConfig(name="adam", nesterov=True))
        self._state = ShardState(torch.ones(num_elements), make, ema_decay=0.999, threads=threads, fused=fused)
        self._published = torch.empty(num_elements)
        self._slots = [torch.full((num_elements,), 1e-3).view(torch.uint8) for _ in range(num_gradients)]
        self._sum = GroupSum(num_elements, DenseWire(torch.float32), threads=threads, fused=fused)
        self._version = 0
        # A norm must be known before the first step: the sum is written once and read once more.
        self.num_bytes = num_elements * (4 * num_gradients + 24 + 8 + 4 + (8 if clip else 0))

    def run(self) -> None:
        self._version += 1
        for slot in self._slots:
            self._sum.add_slot(slot)
        if self._clip:
            self._sum.squared_norm()
        self._state.apply(
            self._sum.block,
            scale=0.25,
            learning_rate=1e-3,
            version=self._version,
            publish=self._published,
            lookahead=1.0,
        )
        self._sum.clear()
