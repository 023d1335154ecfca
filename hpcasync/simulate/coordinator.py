"""The server of a simulated cluster: `ps.server.coordinator.Coordinator` in virtual time, step for step."""

from collections.abc import Generator
from typing import Any

import simpy

from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Arrival, Update
from hpcasync.simulate.exchange import Exchange, Goodbye, Push
from hpcasync.simulate.network import Waiting
from hpcasync.timeline import Timeline


class SimulatedCoordinator:
    """Takes pushes in order, and decides with the real decisions (`ps.protocol.updates`).

    Args:
        exchange: shared with the workers.
        timeline: records what it does.
    """

    def __init__(self, exchange: Exchange, timeline: Timeline) -> None:
        self._exchange = exchange
        self._env = exchange.env
        self._program = exchange.program
        self._decisions = exchange.decisions
        self._costs = exchange.costs
        self._timeline = timeline
        self._unread: list[Push] = []  # pushes of the group that lie in their slots still

    def run(self) -> Waiting:
        """Serve until every worker has finished."""
        self.stop_if_over()
        while not self._decisions.is_finished:
            while self._unread and self._exchange.is_quiet:
                with self._timeline.span("read"):
                    yield from self._read_slots()
            message = yield from self._exchange.receive()
            if isinstance(message, Goodbye):
                self._decisions.finish(message.worker)
            else:
                yield from self._take(message)
            yield from self._advance()

    def stop_if_over(self) -> None:
        """End training if the program says so."""
        if not self._decisions.is_stopping and self._program.should_stop():
            for arrival in self._decisions.stop():
                self._program.after_drop(arrival.record, is_stale=False)
            self._give_slots_back()
            for told in self._exchange.told:
                told.announce()

    def _take(self, push: Push) -> Waiting:
        record = self._record(push)
        is_accepted = self._decisions.receive(Arrival(push.worker, push.sequence, record))
        with self._timeline.span("accumulate" if is_accepted else "drop", worker=push.worker):
            yield self._serve_for(self._costs.cluster.server.push_seconds)
            if is_accepted:
                self._program.accumulate(record)
                self._unread.append(push)
                num_taken = push.sequence - self._exchange.told[push.worker].consumed
                if num_taken == self._exchange.options.num_slots or not self._exchange.options.sums_late:
                    yield from self._read_slots()
            else:
                self._program.after_drop(record, is_stale=not self._decisions.is_stopping)
                yield from self._read_slots()
                self._exchange.told[push.worker].settled = push.sequence
                self._consume(push)

    def _read_slots(self) -> Waiting:
        """Sum the gradients that lie in their slots still, and give the slots back."""
        if self._unread:
            yield self._serve_for(self._reading_seconds())
            self._give_slots_back()

    def _reading_seconds(self) -> float:
        return len(self._unread) * self._costs.accumulate_seconds

    def _give_slots_back(self) -> None:
        for push in self._unread:
            self._consume(push)
        self._unread.clear()

    def _consume(self, push: Push) -> None:
        told = self._exchange.told[push.worker]
        told.consumed = push.sequence
        told.announce()

    def _record(self, push: Push) -> PushRecord:
        if self._decisions.is_stopping:  # it will be dropped
            num_tokens = sum(map(self._program.num_tokens, push.tickets))
            return PushRecord(push.version, num_tokens, 0.0, 0, push.compute_seconds, push.tickets)
        return self._program.gradient(push.worker, push.version, push.parameters, push.tickets, push.compute_seconds)

    def _advance(self) -> Waiting:
        update = None
        if self._decisions.should_apply():
            update = yield from self._apply()
        for index, sequence in self._decisions.tell():
            told = self._exchange.told[index]
            told.handled = sequence
            told.announce()
        if update is not None:
            self._program.after_update(update, self._exchange.now)
            self.stop_if_over()

    def _apply(self) -> Generator[simpy.Event, Any, Update]:
        update = self._decisions.apply()
        staleness = [(push.worker, num) for push, num in zip(update.pushes, update.staleness, strict=True)]
        with self._timeline.span("apply", version=update.version, staleness=staleness):
            self._exchange.writing = update.version
            yield self._serve_for(self._costs.apply_seconds + self._reading_seconds())
            self._give_slots_back()
            self._program.apply(update)
            self._exchange.published = update.version
            for push in update.pushes:
                told = self._exchange.told[push.worker]
                told.settled = push.sequence
                told.announce()
        return update

    def _serve_for(self, seconds: float) -> simpy.Event:
        self._exchange.usage.server += seconds
        return self._env.timeout(seconds)
