"""Mode sync in virtual time: buckets summed over a ring while backward makes the rest, then the optimizer step.

Batches are drawn, gradients counted and rounds ended as `train.modes.allreduce.AllreduceExchange` does it. The sum is
over workers in their order, so that random times do not change the result.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hpcasync.ps.protocol.updates import Arrival, PushCounts, Update, is_sound
from hpcasync.ps.worker.buckets import SUMMED_ELEMENTS
from hpcasync.simulate.forced_staleness import forced_staleness
from hpcasync.simulate.network import ring_allreduce_seconds
from hpcasync.simulate.program import Program
from hpcasync.simulate.timing import BACKWARD_SHARE, Costs, Usage
from hpcasync.timeline import Timeline


def num_buckets(num_elements: int) -> int:
    """That a gradient of so many elements is summed in, if its tensors are small beside them."""
    return max(1, -(-num_elements // SUMMED_ELEMENTS))


class SynchronousCluster:
    """Workers that make every step together.

    Args:
        counts: of gradients; kept up to date.
        during_backward: whether buckets leave before the whole gradient is known.
    """

    def __init__(
        self,
        costs: Costs,
        program: Program,
        counts: PushCounts,
        *,
        num_local: int,
        during_backward: bool = True,
    ) -> None:
        self._costs = costs
        self._program = program
        self._counts = counts
        self._num_workers = costs.cluster.workers
        self._num_local = num_local
        self._delay = costs.cluster.forced_staleness
        self._versions: deque[Any] = deque([program.parameters], maxlen=self._delay.updates + 1)
        self._num_buckets = num_buckets(costs.num_elements)
        self._bucket_seconds = ring_allreduce_seconds(
            costs.push_bytes / self._num_buckets, self._num_workers, costs.cluster.network
        )
        self._during_backward = during_backward
        self._version = 0
        self._num_rounds = 0
        self.now = 0.0
        self._timelines: Sequence[Timeline] = ()
        self.usage = Usage()

    def run(self, timelines: Sequence[Timeline] = ()) -> None:
        """Run until the corpus or the program ends."""
        self._timelines = timelines
        while not self._program.should_stop() and self._round():
            pass

    def _round(self) -> bool:
        """One step of all workers; False if the corpus has no more batches."""
        tickets = [self._tickets(worker) for worker in range(self._num_workers)]
        batches = [self._batch_seconds(worker, drawn) for worker, drawn in enumerate(tickets)]
        seconds = [sum(of_worker) for of_worker in batches]
        slowest = max(seconds)
        moving = self._sum_seconds(batches) - slowest
        self._record(tickets, seconds, moving)
        self.now += slowest + moving
        self.usage.compute += sum(seconds)
        self.usage.waiting += self._num_workers * slowest - sum(seconds)
        self.usage.moving += self._num_workers * moving
        self._num_rounds += 1
        arrivals = [self._gradient(worker, drawn, seconds[worker]) for worker, drawn in enumerate(tickets) if drawn]
        if is_sound(arrivals):
            self._apply(tuple(arrivals))
        else:
            self._drop(arrivals)
        return any(tickets)

    def _gradient(self, worker: int, tickets: tuple[int, ...], seconds: float) -> Arrival:
        staleness = min(forced_staleness(self._delay, self._version), len(self._versions) - 1)
        parameters = self._versions[-1 - staleness]
        record = self._program.gradient(worker, self._version - staleness, parameters, tickets, seconds)
        self._counts.num_pushed += 1
        if record.num_tokens:
            self._program.accumulate(worker, record)
        return Arrival(worker, self._num_rounds, record)

    def _drop(self, arrivals: Sequence[Arrival]) -> None:
        self._counts.num_dropped += len(arrivals)
        self._program.discard()
        for arrival in arrivals:
            self._program.after_drop(replace(arrival.record, num_tokens=0), is_stale=False)

    def _apply(self, arrivals: tuple[Arrival, ...]) -> None:
        self._version += 1
        update = Update(self._version, arrivals)
        for timeline in self._timelines:
            timeline.add("apply", self.now, self._costs.step_seconds, version=self._version)
        self.now += self._costs.step_seconds
        self.usage.server += self._costs.step_seconds
        self._program.apply(update)
        self._versions.append(self._program.parameters)
        self._counts.num_applied += len(arrivals)
        self._counts.staleness.update(update.staleness)
        self._program.after_update(update, self.now)

    def _record(self, tickets: Sequence[tuple[int, ...]], seconds: Sequence[float], moving: float) -> None:
        """Computing, then the rest of the allreduce, in which workers wait for the slowest of them."""
        end = self.now + max(seconds) + moving
        for timeline, drawn, computing in zip(self._timelines, tickets, seconds, strict=False):
            tokens = [sum(map(self._program.num_tokens, drawn))]
            timeline.add("compute", self.now, computing, tokens=tokens)
            timeline.add("allreduce", self.now + computing, end - self.now - computing)

    def _batch_seconds(self, worker: int, tickets: tuple[int, ...]) -> list[float]:
        batches: list[float] = []
        for ticket in tickets:
            num_tokens = self._program.num_tokens(ticket)
            batches.append(self._costs.times.seconds(worker, num_tokens, self.now + sum(batches)))
        return batches

    def _sum_seconds(self, batches: Sequence[list[float]]) -> float:
        """From the start of the round until the last bucket has been summed.

        A bucket begins when all workers have completed it, evenly over the backward passes of their last batches, and
        the bucket before has been summed.
        """
        end = 0.0
        for number in range(1, self._num_buckets + 1):
            left = BACKWARD_SHARE * (1 - number / self._num_buckets) if self._during_backward else 0.0
            ready = max(sum(of_worker) - left * (of_worker[-1] if of_worker else 0.0) for of_worker in batches)
            end = max(ready, end) + self._bucket_seconds
        return end

    def _tickets(self, worker: int) -> tuple[int, ...]:
        first = self._num_rounds * self._num_local * self._num_workers + worker
        numbers = range(first, first + self._num_local * self._num_workers, self._num_workers)
        drawn = (self._program.ticket(number) for number in numbers)
        return tuple(ticket for ticket in drawn if ticket is not None)
