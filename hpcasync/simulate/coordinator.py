"""The server of a simulated cluster: it carries out what the real machines decide, in virtual time."""

import simpy

from hpcasync.ps.protocol.coordination import (
    Apply,
    Coordination,
    Dropped,
    Effects,
    Handled,
    Publish,
    Report,
    Settled,
    Stop,
)
from hpcasync.ps.protocol.orders import Kind, Order
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.slots import SlotLedger, Step
from hpcasync.ps.protocol.updates import Update
from hpcasync.simulate.exchange import Exchange, Goodbye, Push
from hpcasync.simulate.network import Waiting
from hpcasync.timeline import Timeline


class SimulatedCoordinator:
    """Takes pushes in order, and does what `Coordination` and `SlotLedger` say."""

    def __init__(self, exchange: Exchange, coordination: Coordination, timeline: Timeline) -> None:
        self._exchange = exchange
        self._env = exchange.env
        self._program = exchange.program
        self._coordination = coordination
        self._costs = exchange.costs
        self._hosts = [] if self._costs.hosts is None else self._costs.hosts.groups()
        self._slots = SlotLedger(
            exchange.options.num_slots, sums_late=exchange.options.sums_late, sums_hosts=bool(self._hosts)
        )
        self._timeline = timeline
        self._taken: PushRecord

    def run(self) -> Waiting:
        coordination = self._coordination
        yield from self.stop_if_over()
        while not coordination.is_finished:
            while self._slots.held and self._exchange.is_quiet:
                yield from self._execute(Order(Kind.READ))
            message = yield from self._exchange.receive()
            if isinstance(message, Goodbye):
                yield from self._carry_out(coordination.look(message.worker, has_finished=True))
            else:
                yield from self._carry_out(coordination.receive(message.worker, self._record(message)))
            yield from self._carry_out(coordination.advance())

    def stop_if_over(self) -> Waiting:
        if not self._coordination.updates.is_stopping and self._program.should_stop():
            yield from self._carry_out(self._coordination.stop())

    def _carry_out(self, effects: Effects) -> Waiting:
        exchange, program = self._exchange, self._program
        for effect in effects:
            match effect:
                case Order():
                    yield from self._execute(effect)
                case Apply(update):
                    yield from self._execute(Order(Kind.APPLY, version=update.version), update)
                case Publish(version):
                    exchange.published = version
                case Settled(worker, sequence):
                    exchange.told[worker].tell(settled=sequence)
                case Handled(worker, sequence):
                    exchange.told[worker].tell(handled=sequence)
                case Report(update):
                    program.after_update(update, exchange.now)
                    yield from self.stop_if_over()
                case Dropped(record, is_stale):
                    program.after_drop(record, is_stale=is_stale)
                case Stop():
                    exchange.is_stopping = True
                    for told in exchange.told:
                        told.tell()

    def _execute(self, order: Order, update: Update | None = None) -> Waiting:
        if order.kind is Kind.READ:
            span = self._timeline.span("read")
        elif update is None:
            span = self._timeline.span(order.kind.name.lower(), worker=order.worker)
        else:
            staleness = [(push.worker, num) for push, num in zip(update.pushes, update.staleness, strict=True)]
            span = self._timeline.span("apply", version=update.version, staleness=staleness)
        with span:
            if order.kind in (Kind.ACCUMULATE, Kind.DROP):
                yield self._serve_for(self._costs.cluster.server.push_seconds)
            for step in self._slots.steps(order):
                yield from self._make_step(step, order, update)

    def _make_step(self, step: Step, order: Order, update: Update | None) -> Waiting:
        # Reading takes time in the pass that needs the gradients.
        reading_seconds = len(self._slots.held) * self._costs.accumulate_seconds
        if step is Step.TAKE:
            self._program.accumulate(order.worker, self._taken)
            for host in self._hosts:
                host.take(order.worker)
        elif step is Step.FOLD and self._slots.held:
            yield self._serve_for(reading_seconds)
        elif step is Step.EXCHANGE:
            yield self._serve_for(reading_seconds)
            yield from self._exchange_sums()
        elif step is Step.APPLY:
            assert update is not None
            self._exchange.writing = order.version
            left_seconds = 0.0 if self._hosts else reading_seconds  # hosts have read what they summed
            yield self._serve_for(self._costs.apply_seconds + left_seconds)
            self._program.apply(update)
        elif step is Step.CONSUME:
            for worker, sequence in self._slots.consume(order):
                self._exchange.told[worker].tell(consumed=sequence)

    def _exchange_sums(self) -> Waiting:
        """Every host sends a sum for each shard of the others; all wait for those that they need, and add them."""
        num_sums = max(len(host.exchange().sources) for host in self._hosts)
        num_bytes = self._costs.sum_bytes / self._costs.num_servers
        yield from self._exchange.network.exchange((len(self._hosts) - 1) * num_bytes, num_sums * num_bytes)
        yield self._serve_for(num_sums * self._costs.accumulate_seconds)
        self._program.exchange()

    def _serve_for(self, seconds: float) -> simpy.Event:
        self._exchange.usage.server += seconds
        return self._env.timeout(seconds)

    def _record(self, push: Push) -> PushRecord:
        program = self._program
        if self._coordination.updates.is_stopping:  # it will be dropped
            num_tokens = sum(map(program.num_tokens, push.tickets))
            return PushRecord(push.version, num_tokens, 0.0, 0, push.compute_seconds, push.tickets)
        self._taken = program.gradient(push.worker, push.version, push.parameters, push.tickets, push.compute_seconds)
        return self._taken
