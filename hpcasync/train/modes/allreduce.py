"""The synchronous baseline: the same flat gradient vector, summed over all workers in every step."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import torch

from hpcasync.config.schema import RunConfig
from hpcasync.ps.protocol.orders import Kind, Order
from hpcasync.ps.server.apply_group import apply_group
from hpcasync.ps.server.shard_state import ShardState, blocks_of, squared_norm
from hpcasync.runs.counters import Counters
from hpcasync.runs.run_state import RunState, UpdateReport
from hpcasync.timeline import Timeline
from hpcasync.train.loop.batch_order import TicketOrder
from hpcasync.train.loop.exchange import Contribution
from hpcasync.train.modes.bucket_sums import BucketSums
from hpcasync.train.supervise.stopping import StopRules
from hpcasync.train.supervise.supervisor import Supervisor

# Of what is summed beside the gradient: tokens, loss, whether rank 0 wants to end. Then a word for each worker: whether
# its gradient is to be applied, or is not finite; 0: it has none.
_TARGET_TOKENS, _SOURCE_TOKENS, _LOSS_SUM, _IS_LAST, _NUM_TOTALS = range(5)
_IS_SOUND, _IS_REJECTED = 1, -1


class AllreduceExchange:
    """A worker that waits for all workers in every step. Each holds the whole optimizer state.

    The gradients are summed while backward makes them. Nothing else is sent: every rank counts, and so knows the
    learning rate and the limits on updates and tokens; whatever else ends training, rank 0 says in the next sum, whose
    update is the last one then.

    Args:
        sums: of gradients over all workers.
        state: the whole parameter vector (the model's own) with its optimizer.
        batches: their order.
        supervisor: on world rank 0 alone.
        config: of the run.
        rate: the learning rate of the update that brings the counters to what it is given.
        run: where the run stands; its counts of gradients are kept up to date.
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
        self._num_drawn = 0
        self._should_stop = False
        self._is_finished = False
        self._timeline = timeline

    @property
    def is_finished(self) -> bool:
        """Whether training has ended, for all."""
        return self._is_finished

    @property
    def version(self) -> int:
        """Number of updates made."""
        return self._counters.num_updates

    def draw(self) -> int | None:
        """This worker's next ticket of the round: workers take turns, so that a round covers consecutive tickets."""
        number = self._num_rounds * self._num_local + self._num_drawn
        self._num_drawn += 1
        return self._batches.ticket(number * self._sums.num_workers + self._sums.rank)

    def next_ticket(self) -> int | None:
        """The first of the next round."""
        number = (self._num_rounds + 1) * self._num_local
        return self._batches.ticket(number * self._sums.num_workers + self._sums.rank)

    def finish(self) -> None:
        """Training has ended before it began, for all."""
        self._is_finished = True

    def expect_gradient(self) -> None:
        """Sum the buckets of the gradient as they are completed."""
        self._sums.begin()

    def push(self, gradient: torch.Tensor, contribution: Contribution) -> None:
        """Sum over all workers, and make the optimizer step."""
        totals = self._sum(gradient, contribution)
        tickets = self._round_tickets()
        self._num_rounds += 1
        self._num_drawn = 0
        words = totals[_NUM_TOTALS:].tolist()
        has_batches = [rank for rank, word in enumerate(words) if word]
        # One gradient that is not finite spoils the sum: the round is dropped, as with torch's data parallelism.
        is_sound = bool(has_batches) and _IS_REJECTED not in words
        report = UpdateReport(
            num_steps=len(has_batches),
            target_tokens=int(totals[_TARGET_TOKENS]),
            source_tokens=int(totals[_SOURCE_TOKENS]),
            loss_sum=float(totals[_LOSS_SUM]),
            tickets=tuple(chain.from_iterable(tickets[rank] for rank in has_batches)),
            staleness=(0,) * len(has_batches),
        )
        self._counts.num_pushed += len(has_batches)
        if not is_sound or not self._apply(gradient, report):
            self._drop([tickets[rank] for rank in has_batches])
        self._is_finished = not has_batches or bool(totals[_IS_LAST]) or self._limits.ending is not None
        if self._supervisor is not None:
            self._supervisor.collect_shards()
            self._should_stop = self._supervisor.should_stop()

    def pull(self, parameters: torch.Tensor) -> None:
        """Nothing to do: the step was made in place."""

    def _sum(self, gradient: torch.Tensor, contribution: Contribution) -> torch.Tensor:
        totals = torch.zeros(_NUM_TOTALS + self._sums.num_workers, dtype=torch.float64)
        totals[_IS_LAST] = self._should_stop
        own = _NUM_TOTALS + self._sums.rank
        if contribution.tickets:
            totals[own] = _IS_SOUND if contribution.target_tokens else _IS_REJECTED
        if contribution.target_tokens:
            totals[_TARGET_TOKENS], totals[_SOURCE_TOKENS] = contribution.target_tokens, contribution.source_tokens
            totals[_LOSS_SUM] = contribution.loss_sum
        with self._timeline.span("allreduce"):
            self._sums.sum(totals)
        return totals

    def _drop(self, dropped: list[tuple[int, ...]]) -> None:
        self._counts.num_dropped += len(dropped)
        if self._supervisor is not None:
            for tickets in dropped:
                self._supervisor.skip(tickets)

    def _apply(self, gradient: torch.Tensor, report: UpdateReport) -> bool:
        """Make the optimizer step; False, and nothing, where the sum is not finite."""
        optimizer, squared = self._config.optimizer, 0.0
        if optimizer.clip_norm or self._config.sync.compression == "fp16":
            squared = squared_norm(gradient)
            if not math.isfinite(squared):
                return False
        self._count(report)
        rate = self._rate(self._counters)
        version = self._counters.num_updates
        order = Order(Kind.APPLY, version=version, num_tokens=report.target_tokens, learning_rate=rate)
        with self._timeline.span("apply", version=version):
            apply_group(self._state, blocks_of(gradient), order, optimizer.clip_norm, lambda: squared)
        self._counts.num_applied += report.num_steps
        self._counts.staleness[0] += report.num_steps
        if self._supervisor is not None:
            request = self._supervisor.after_update(report, rate)
            if request is not None:
                self._supervisor.save_all(request, self._state)
        return True

    def _count(self, report: UpdateReport) -> None:
        counters = self._counters
        counters.num_updates += 1
        counters.num_batches += len(report.tickets)
        counters.target_tokens += report.target_tokens
        self._limits.check_counters(counters)

    def _round_tickets(self) -> list[tuple[int, ...]]:
        """The tickets that each worker has drawn in this round."""
        num_workers = self._sums.num_workers
        per_round = self._num_local * num_workers
        first = self._num_rounds * per_round
        return [
            tuple(
                ticket
                for number in range(first + rank, first + per_round, num_workers)
                if (ticket := self._batches.ticket(number)) is not None
            )
            for rank in range(num_workers)
        ]
