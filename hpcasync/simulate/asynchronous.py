"""The asynchronous modes in virtual time: workers and one server, step for step as `ps.client` and `ps.server` do them.

The coordinator decides with its own `UpdateState`. All servers do the same at the same time, each on its shard, so one
of them is simulated with its share of elements and bytes.
"""

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from hpcasync.config import Config, PullPolicy
from hpcasync.errors import UserError
from hpcasync.ps.record import PushRecord
from hpcasync.ps.state import Arrival, UpdateState
from hpcasync.simulate.network import Network, Waiting
from hpcasync.simulate.program import Program
from hpcasync.simulate.timing import Costs, Usage, polling_delay


@dataclass
class _Worker:
    """A worker, and what the servers have told it (`ps.link.ControlWords`)."""

    index: int
    version: int = -1
    parameters: Any = None
    num_pushed: int = 0
    compute_seconds: float = 0.0
    is_finished: bool = False
    consumed: int = 0
    handled: int = 0
    settled: int = 0
    change: simpy.Event | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Push:
    """A push that has been announced. Its gradient is computed when the server takes it: the result is the same."""

    worker: _Worker
    sequence: int
    version: int
    parameters: Any
    tickets: tuple[int, ...]
    compute_seconds: float


@dataclass(frozen=True)
class ExchangeOptions:
    """How workers and servers exchange.

    Attributes:
        pull: exchange.pull.
        num_local: accumulate.local.
        num_slots: exchange.slots.
        sums_late: gradients stay in their slots until the update, as `ps.group_sum` has it where the format allows.
    """

    pull: PullPolicy
    num_local: int
    num_slots: int
    sums_late: bool

    @classmethod
    def of(cls, config: Config) -> "ExchangeOptions":
        """As configured.

        Raises:
            UserError: transfers beside the computation are not simulated.
        """
        if config.exchange.overlap != "none":
            raise UserError(
                f"exchange.overlap={config.exchange.overlap} is not simulated: use exchange.overlap=none, and expect a "
                "little more of the real run than of the simulated one"
            )
        sums_late = config.exchange.gradients != "topk" and not config.staleness.compensation
        return cls(config.exchange.pull, config.accumulate.local, config.exchange.slots, sums_late)


class AsynchronousCluster:
    """Workers that push to servers until the corpus or the program ends.

    Args:
        costs: how long everything takes.
        program: what is computed.
        decisions: of the coordinator.
        options: of the exchange.
        stop_seconds: virtual time at which the program is asked whether to stop, whatever happens then; 0: none.
    """

    def __init__(
        self,
        costs: Costs,
        program: Program,
        decisions: UpdateState,
        options: ExchangeOptions,
        *,
        stop_seconds: float = 0.0,
    ) -> None:
        self._env = simpy.Environment()
        self._costs = costs
        self._program = program
        self._decisions = decisions
        self._options = options
        self._stop_seconds = stop_seconds
        self._round_trip = 2 * costs.cluster.network.latency_seconds
        self._network = Network(self._env, costs.cluster.network, costs.cluster.workers, costs.num_servers)
        self._workers = [_Worker(index) for index in range(costs.cluster.workers)]
        self._inbox: deque[_Push | _Worker] = deque()
        self._unread: list[_Push] = []  # pushes of the group that lie in their slots still
        self._idle: simpy.Event | None = None
        self._num_drawn = 0
        self._published = self._writing = decisions.version
        self._usage = Usage()

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return float(self._env.now)

    @property
    def usage(self) -> Usage:
        """Busy times so far."""
        self._usage.to_server = self._network.to_server.busy_seconds
        self._usage.from_server = self._network.from_server.busy_seconds
        self._usage.worker_links = sum(link.busy_seconds for link in self._network.worker_links)
        return self._usage

    def run(self) -> None:
        """Run until every worker has finished."""
        serving = self._env.process(self._serve())
        for worker in self._workers:
            self._env.process(self._work(worker))
        if self._stop_seconds:
            self._env.process(self._stop_in_time())
        self._env.run(until=serving)

    # The worker: `train.worker.run_worker` with `train.asynchronous.AsynchronousExchange` and `ps.client.Client`.

    def _work(self, worker: _Worker) -> Waiting:
        yield from self._pull(worker)
        while not worker.is_finished:
            tickets = yield from self._compute(worker)
            if tickets:
                yield from self._push(worker, tickets)
            if not worker.is_finished:
                yield from self._pull(worker)
        yield self._env.timeout(self._round_trip / 2)
        self._send(worker)

    def _compute(self, worker: _Worker) -> Generator[simpy.Event, Any, tuple[int, ...]]:
        tickets: list[int] = []
        worker.compute_seconds = 0.0
        while len(tickets) < self._options.num_local:
            ticket = None if self._decisions.is_stopping else self._program.ticket(self._num_drawn)
            if ticket is None:
                worker.is_finished = True
                break
            self._num_drawn += 1
            tickets.append(ticket)
            drawing = 2 * self._round_trip  # the stop flag, the cursor
            seconds = self._costs.times.seconds(worker.index, self._program.num_tokens(ticket), self.now + drawing)
            yield self._env.timeout(drawing + seconds)
            worker.compute_seconds += seconds
            self._usage.compute += seconds
        return tuple(tickets)

    def _push(self, worker: _Worker, tickets: tuple[int, ...]) -> Waiting:
        sequence = worker.num_pushed + 1
        if not (yield from self._wait(worker, lambda: worker.consumed >= sequence - self._options.num_slots)):
            worker.is_finished = True
            return
        started = self.now
        # Afterwards: the end of the flush, the announcement.
        yield from self._network.push(worker.index, self._costs.push_bytes, self._round_trip)
        self._usage.moving += self.now - started
        worker.num_pushed = sequence
        self._send(_Push(worker, sequence, worker.version, worker.parameters, tickets, worker.compute_seconds))
        if not worker.is_finished and self._options.pull != "latest":
            told = self._is_settled if self._options.pull == "applied" else self._is_handled
            worker.is_finished = not (yield from self._wait(worker, lambda: told(worker)))

    def _is_handled(self, worker: _Worker) -> bool:
        return worker.handled >= worker.num_pushed

    def _is_settled(self, worker: _Worker) -> bool:
        return worker.settled >= worker.num_pushed

    def _pull(self, worker: _Worker) -> Waiting:
        started = self.now
        while True:
            yield self._env.timeout(self._round_trip)  # the published version
            version, parameters = self._published, self._program.parameters
            if version == worker.version:
                break
            # Servers are read one after the other, and asked afterwards whether they have moved on.
            asking = (2 * self._costs.num_servers - 0.5) * self._round_trip
            yield from self._network.pull(worker.index, self._costs.pull_bytes, asking)
            if self._writing <= version + 1:
                worker.version, worker.parameters = version, parameters
                break
            self._usage.num_pull_retries += 1
        self._usage.moving += self.now - started

    def _wait(self, worker: _Worker, is_done: Callable[[], bool]) -> Generator[simpy.Event, Any, bool]:
        """Wait until the servers' words say so; False if training has ended meanwhile."""
        started = self.now
        has_waited = False
        while not is_done():
            if self._decisions.is_stopping:
                return False
            has_waited = True
            worker.change = self._env.event()
            yield worker.change
        delay = polling_delay(self.now - started) if has_waited else 0.0
        yield self._env.timeout(2 * self._round_trip + delay)  # the word, the stop flag
        self._usage.waiting += self.now - started
        return not self._decisions.is_stopping

    # The server: `ps.server.Coordinator`.

    def _send(self, message: "_Push | _Worker") -> None:
        self._inbox.append(message)
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None

    def _serve(self) -> Waiting:
        if self._program.should_stop():
            self._stop()
        while not self._decisions.is_finished:
            if not self._inbox:
                started = self.now
                self._idle = self._env.event()
                yield self._idle
                yield self._env.timeout(polling_delay(self.now - started))
            message = self._inbox.popleft()
            if isinstance(message, _Worker):
                self._decisions.finish(message.index)
            else:
                yield from self._take(message)
            yield from self._advance()

    def _take(self, push: _Push) -> Waiting:
        record = self._record(push)
        is_accepted = self._decisions.receive(Arrival(push.worker.index, push.sequence, record))
        yield self._serve_for(self._costs.cluster.server.push_seconds)
        if is_accepted:
            self._program.accumulate(record)
            self._unread.append(push)
            is_last_slot = push.sequence - push.worker.consumed == self._options.num_slots
            if is_last_slot or not self._options.sums_late:
                yield from self._read_slots()
        else:
            self._program.after_drop(record, is_stale=not self._decisions.is_stopping)
            yield from self._read_slots()
            push.worker.settled = push.sequence
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

    def _consume(self, push: _Push) -> None:
        push.worker.consumed = push.sequence
        self._tell(push.worker)

    def _record(self, push: _Push) -> PushRecord:
        if self._decisions.is_stopping:  # it will be dropped
            num_tokens = sum(map(self._program.num_tokens, push.tickets))
            return PushRecord(push.version, num_tokens, 0.0, 0, push.compute_seconds, push.tickets)
        return self._program.gradient(
            push.worker.index, push.version, push.parameters, push.tickets, push.compute_seconds
        )

    def _advance(self) -> Waiting:
        update = None
        if self._decisions.should_apply():
            update = self._decisions.apply()
            self._writing = update.version
            yield self._serve_for(self._costs.apply_seconds + self._reading_seconds())
            self._give_slots_back()
            self._program.apply(update)
            self._published = update.version
            for push in update.pushes:
                worker = self._workers[push.worker]
                worker.settled = push.sequence
                self._tell(worker)
        for index, sequence in self._decisions.tell():
            self._workers[index].handled = sequence
            self._tell(self._workers[index])
        if update is not None:
            self._program.after_update(update, self.now)
            if self._program.should_stop():
                self._stop()

    def _serve_for(self, seconds: float) -> simpy.Event:
        self._usage.server += seconds
        return self._env.timeout(seconds)

    def _tell(self, worker: _Worker) -> None:
        if worker.change is not None:
            worker.change.succeed()
            worker.change = None

    def _stop(self) -> None:
        if not self._decisions.is_stopping:
            self._decisions.stop()
            self._give_slots_back()
            for worker in self._workers:
                self._tell(worker)

    def _stop_in_time(self) -> Waiting:
        yield self._env.timeout(self._stop_seconds)
        if self._program.should_stop():
            self._stop()
