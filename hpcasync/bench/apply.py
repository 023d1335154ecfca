"""`hpcasync bench apply`: the sum of a group and one optimizer step, against the bytes that it has to move."""

import torch

from hpcasync.bench.memory import Bandwidth, seconds_of
from hpcasync.bench.rows import Row, rate_row
from hpcasync.config.schema import OptimizerConfig
from hpcasync.ps.server.group_sum import GroupSum
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.transport.gradient_formats import DenseWire
from hpcasync.train.loop.optimizers import optimizer_factory


def bench_apply(num_elements: int, num_gradients: int, num_rounds: int, num_threads: int) -> list[Row]:
    """Time updates of one server.

    Every gradient is read once; parameters and Adam's two moments are read and written; the published copy is written.
    """
    torch.set_num_threads(num_threads)
    rows = []
    for name, clip in (("", False), (", clipped by the global norm", True)):
        update = _Update(num_elements, num_gradients, clip=clip)
        bandwidth = Bandwidth(num_elements)
        update.run()
        bandwidth.gigabytes_per_second()
        values, limits = [], []
        for _ in range(num_rounds):
            values.append(update.num_bytes / seconds_of(update.run) / 1e9)
            limits.append(bandwidth.gigabytes_per_second())
        what = f"sum of {num_gradients} gradients and Adam, {num_elements:,} parameters{name}"
        rows.append(
            rate_row(what, values, limits, "GB/s", goal=0.8, note=f"{update.num_bytes / num_elements:g} B each")
        )
    return rows


class _Update:
    def __init__(self, num_elements: int, num_gradients: int, *, clip: bool) -> None:
        self._clip = clip
        self._state = ShardState(torch.ones(num_elements), optimizer_factory(OptimizerConfig()))
        self._published = torch.empty(num_elements)
        self._slots = [torch.full((num_elements,), 1e-3).view(torch.uint8) for _ in range(num_gradients)]
        self._sum = GroupSum(num_elements, DenseWire(torch.float32))
        self._version = 0
        # A norm must be known before the first step: the sum is written once and read once more.
        self.num_bytes = num_elements * (4 * num_gradients + 24 + 4 + (8 if clip else 0))

    def run(self) -> None:
        self._version += 1
        for slot in self._slots:
            self._sum.add_slot(slot)
        if self._clip:
            self._sum.squared_norm()
        self._state.apply(
            self._sum.block, scale=0.25, learning_rate=1e-3, version=self._version, publish=self._published
        )
        self._sum.clear()
