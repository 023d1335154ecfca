"""The synchronous baseline: the same flat gradient vector, summed over all workers in every step."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from hpcasync.config.schema import RunConfig
from hpcasync.ps.protocol.orders import Order
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Arrival, Update, is_sound
from hpcasync.ps.server.apply_group import apply_group
from hpcasync.ps.server.shard_state import ShardState, blocks_of, squared_norm
from hpcasync.ps.transport.record_codec import decode_record, encode_record, record_bytes
from hpcasync.runs.counters import Counters
from hpcasync.runs.run_state import RunState
from hpcasync.timeline import Timeline
from hpcasync.train.loop.batch_order import TicketOrder
from hpcasync.train.modes.bucket_sums import BucketSums
from hpcasync.train.supervise.stopping import StopRules
from hpcasync.train.supervise.supervisor import Supervisor


class AllreduceExchange:
    """A worker that waits for all workers in every step. Each holds the whole optimizer state.

    The gradients are summed while backward makes them, and with them go the records of all workers. Nothing else is
    sent (but, on one host, what Muon's steps go along, which ranks share): every rank counts, and so knows the learning
    rate and the limits on updates and tokens; whatever else ends training, rank 0 says in the next sum, whose update is
    the last one then.

    Args:
        state: the whole parameter vector (the model's own) with its optimizer.
        supervisor: on world rank 0 alone.
        timeline: records allreduces, in which workers wait for each other, and optimizer steps.
    """

    def __init__(
        self,
        sums: BucketSums,
        state: ShardState,
        batches: TicketOrder,
        supervisor: Supervisor | None,
        *,
        config: RunConfig,
        rate: Callable[[Counters], float],
        run: RunState,
        timeline: Timeline,
    ) -> None:
        self._sums = sums
        self._state = state
        self._batches = batches
        self._supervisor = supervisor
        self._config = config
        self._rate = rate
        self._num_local = config.accumulate.local
        # Of its own: rank 0's are the supervisor's to change.
        self._counters = replace(run.counters)
        self._limits = StopRules(config.stop)
        self._counts = run.counts
        self._num_rounds = 0
        self._num_drawn = self._num_ahead = 0
        self._should_stop = False
        self._is_finished = False
        self._timeline = timeline

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    @property
    def version(self) -> int:
        return self._counters.num_updates

    def draw(self) -> int | None:
        """This worker's next ticket of the round: workers take turns, so that a round covers consecutive tickets."""
        number = self._num_rounds * self._num_local + self._num_drawn
        self._num_drawn += 1
        return self._batches.ticket(number * self._sums.num_workers + self._sums.rank)

    def draw_ahead(self) -> int | None:
        """The same, in whichever round it will be."""
        number, self._num_ahead = self._num_ahead, self._num_ahead + 1
        return self._batches.ticket(number * self._sums.num_workers + self._sums.rank)

    def next_ticket(self) -> int | None:
        """The first of the next round."""
        number = (self._num_rounds + 1) * self._num_local
        return self._batches.ticket(number * self._sums.num_workers + self._sums.rank)

    def finish(self) -> None:
        """Training has ended before it began, for all."""
        self._is_finished = True

    def expect_gradient(self, factor: float = 1.0) -> None:
        """Sum the buckets of the gradient as they are completed, times a factor."""
        self._sums.begin(factor)

    def push(self, gradient: torch.Tensor, record: PushRecord) -> None:
        """Sum over all workers, and make the optimizer step."""
        records, is_last = self._sum(record)
        self._num_rounds += 1
        self._num_drawn = 0
        pushes = [Arrival(rank, self._num_rounds, other) for rank, other in enumerate(records) if other.tickets]
        self._counts.num_pushed += len(pushes)
        if not is_sound(pushes) or not self._apply(gradient, Update(self.version + 1, tuple(pushes))):
            self._drop(pushes)
        self._is_finished = not pushes or is_last or self._limits.ending is not None
        if self._supervisor is not None:
            self._supervisor.collect_shards()
            self._should_stop = self._supervisor.should_stop()

    def rest(self) -> bool:
        """There never is more to draw; others may have batches left."""
        return False

    def pull(self, parameters: torch.Tensor) -> None:
        """Nothing to do: the step was made in place."""

    def _sum(self, record: PushRecord) -> tuple[list[PushRecord], bool]:
        """Sum the gradient; returns the records of all workers (without tickets: no gradient), and rank 0's word."""
        # A row for each worker, to which the others add zeros.
        rows = torch.zeros(self._sums.num_workers + 1, record_bytes(self._num_local) // 8, dtype=torch.float64)
        rows[self._sums.rank] = encode_record(record, self._num_local)
        rows[-1] = self._should_stop
        with self._timeline.span("allreduce"):
            self._sums.sum(rows)
        return [decode_record(row) for row in rows[:-1]], bool(rows[-1].any())

    def _drop(self, dropped: list[Arrival]) -> None:
        self._counts.num_dropped += len(dropped)
        if self._supervisor is not None:
            for push in dropped:  # each counts as rejected, whoever's gradient was not finite
                self._supervisor.after_drop(replace(push.record, num_tokens=0), is_stale=False)

    def _apply(self, gradient: torch.Tensor, update: Update) -> bool:
        """Make the optimizer step; False, and nothing, where the sum is not finite."""
        optimizer, squared = self._config.optimizer, 0.0
        if optimizer.clip_norm or self._config.sync.compression == "fp16":
            squared = squared_norm(gradient)
            if not math.isfinite(squared):
                return False
        self._counters.add(update)
        self._limits.check_counters(self._counters)
        rate = self._rate(self._counters)
        order = Order.to_apply(update, rate, 0.0)
        with self._timeline.span("apply", version=update.version):
            apply_group(self._state, blocks_of(gradient), order, optimizer.clip_norm, lambda: squared)
        self._counts.num_applied += len(update.pushes)
        self._counts.staleness.update(update.staleness)
        if self._supervisor is not None:
            request = self._supervisor.after_update(update, rate)
            if request is not None:
                self._supervisor.save_all(request, self._state)
        return True
