"""Workers of a simulated cluster: the loop of `train.loop.worker` with the asynchronous exchanges, in virtual time.

What a worker waits for is decided by `ps.protocol.working`; each class has the order of computing and moving of the
exchange of the same name in `train.modes.asynchronous` or `train.modes.overlapped`.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import simpy

from hpcasync.ps.protocol.working import DRAWS_AHEAD, Source, Wait, Working
from hpcasync.ps.worker.buckets import PUSHED_ELEMENTS
from hpcasync.simulate.exchange import Exchange, Goodbye, Push
from hpcasync.simulate.network import Waiting
from hpcasync.simulate.timing import BACKWARD_SHARE, polling_delay
from hpcasync.timeline import Timeline

Answer = Generator[simpy.Event, Any, bool]
# Of a large model a bucket here is several.
_MOST_BUCKETS = 16


class SimulatedWorker:
    """A worker that pushes, waits and pulls between two computations."""

    def __init__(self, index: int, exchange: Exchange, timeline: Timeline) -> None:
        self._index = index
        self._exchange = exchange
        self._env = exchange.env
        self._options = exchange.options
        self._told = exchange.told[index]
        self._timeline = timeline
        self._version = -1
        self._parameters: Any = None
        self._pulled = -1
        options = exchange.options
        self._working = Working(options.num_slots, options.pull, fresh_updates=options.fresh_updates)
        self._compute_seconds = 0.0
        self._is_finished = False
        self._ahead: deque[int | None] = deque()

    def run(self) -> Waiting:
        yield from self._pull()
        while not self._is_finished:
            tokens: list[int] = []
            with self._timeline.span("compute", tokens=tokens):
                tickets = yield from self._compute()
                tokens.append(sum(map(self._exchange.program.num_tokens, tickets)))
            if tickets:
                yield from self._give(tickets)
            if not self._is_finished:
                yield from self._take()
        yield from self._end()
        yield self._env.timeout(self._exchange.round_trip / 2)
        self._exchange.send(Goodbye(self._index))

    def _compute(self) -> Generator[simpy.Event, Any, tuple[int, ...]]:
        exchange = self._exchange
        tickets: list[int] = []
        self._compute_seconds = 0.0
        while len(tickets) < self._options.num_local:
            drawing = self._drawing_seconds()
            ticket = self._draw()
            if ticket is None:
                break
            tickets.append(ticket)
            num_tokens = exchange.program.num_tokens(ticket)
            seconds = exchange.costs.times.seconds(self._index, num_tokens, exchange.now + drawing)
            is_last = len(tickets) == self._options.num_local
            if is_last:
                self._expect_gradient(exchange.now + drawing, seconds)
            if is_last and self._options.prefetch and not self._ahead:
                yield self._env.timeout(drawing)
                self._ahead.append(self._draw())
                drawing = 0.0
            yield self._env.timeout(drawing + seconds)
            self._compute_seconds += seconds
            exchange.usage.compute += seconds
        return tuple(tickets)

    def _drawing_seconds(self) -> float:
        return (1 if self._ahead else 2) * self._exchange.round_trip  # the stop flag, the cursor

    def _draw(self) -> int | None:
        """The next ticket, which may have been drawn while the last gradient was being computed."""
        if self._is_finished or self._exchange.is_stopping:
            ticket = None
        else:
            ticket = self._ahead.popleft() if self._ahead else self._draw_new()
        self._is_finished = ticket is None
        return ticket

    def _draw_new(self) -> int | None:
        exchange = self._exchange
        source = self._working.next_source(
            0, is_stopping=exchange.is_stopping
        )  # nobody dies here, and leaves something
        ticket = exchange.program.ticket(exchange.num_drawn) if source is Source.CURSOR else None
        self._working.drew(has_batch=ticket is not None)
        exchange.num_drawn += ticket is not None
        return ticket

    def _expect_gradient(self, start: float, seconds: float) -> None:
        """The computation of the last batch of a push begins at `start`."""

    def _give(self, tickets: tuple[int, ...]) -> Waiting:
        """Give the gradient away."""
        with self._timeline.span("push"):
            is_pushed = yield from self._push(tickets)
        if not is_pushed:
            self._is_finished = True
        elif not self._is_finished:
            with self._timeline.span("wait"):
                self._is_finished = not (yield from self._wait_for_servers())

    def _take(self) -> Waiting:
        """Bring the parameters up to date."""
        with self._timeline.span("pull"):
            yield from self._pull()

    def _end(self) -> Waiting:
        """Complete what runs beside the computation."""
        yield from ()

    def _push(self, tickets: tuple[int, ...]) -> Answer:
        if not (yield from self._wait_for_slot()):
            return False
        started = self._exchange.now
        # Afterwards: the end of the flush, the announcement.
        round_trip = self._exchange.round_trip
        yield from self._exchange.network.push(self._index, self._exchange.costs.push_bytes, round_trip)
        self._exchange.usage.moving += self._exchange.now - started
        self._announce(self._describe(tickets))
        return True

    def _describe(self, tickets: tuple[int, ...]) -> Push:
        return Push(self._index, 0, self._version, self._parameters, tickets, self._compute_seconds)

    def _announce(self, push: Push) -> None:
        self._exchange.send(replace(push, sequence=self._working.announce()))

    def _wait_for_slot(self) -> Answer:
        return self._wait(self._working.before_write())

    def _wait_for_servers(self) -> Answer:
        """As exchange.pull says; False if training has ended."""
        wait = self._working.after_push(self._version)
        return wait is None or (yield from self._wait(wait))

    def _wait(self, wait: Wait) -> Answer:
        """Wait until the servers' words say so; False if training has ended meanwhile."""
        exchange = self._exchange
        started = exchange.now
        has_waited = False
        while getattr(self._told, wait.told.value) < wait.value:
            if exchange.is_stopping:
                return False
            has_waited = True
            self._told.change = self._env.event()
            yield self._told.change
        delay = polling_delay(exchange.now - started) if has_waited else 0.0
        yield self._env.timeout(2 * exchange.round_trip + delay)  # the word, the stop flag
        exchange.usage.waiting += exchange.now - started
        return not exchange.is_stopping

    def _pull(self) -> Waiting:
        self._version, self._parameters = yield from self._fetch()

    def _fetch(self) -> Generator[simpy.Event, Any, tuple[int, Any]]:
        """The newest version and its parameters, which are moved unless this worker has them."""
        exchange = self._exchange
        started = exchange.now
        while True:
            yield self._env.timeout(exchange.round_trip)  # the published version
            version, parameters = exchange.published, exchange.program.parameters
            if version == self._pulled:
                break
            # Servers are read one after the other, and asked afterwards whether they have moved on.
            asking = (2 * exchange.costs.num_servers - 0.5) * exchange.round_trip
            yield from exchange.network.pull(self._index, exchange.costs.pull_bytes, asking)
            if exchange.writing <= version + 1:
                self._pulled = version
                break
            exchange.usage.num_pull_retries += 1
        exchange.usage.moving += exchange.now - started
        return version, parameters


class PushOverlappedWorker(SimulatedWorker):
    """Pushes buckets of the gradient in a thread while the backward pass makes the rest; waits and pulls as without."""

    def __init__(self, index: int, exchange: Exchange, timeline: Timeline) -> None:
        super().__init__(index, exchange, timeline)
        self._thread: simpy.Process | None = None
        self._stream: simpy.Process | None = None
        num_elements = exchange.costs.num_elements
        self._num_buckets = max(1, min(_MOST_BUCKETS, -(-num_elements // PUSHED_ELEMENTS)))

    def _expect_gradient(self, start: float, seconds: float) -> None:
        self._stream = self._in_thread(self._stream_gradient(start, seconds))

    def _push(self, tickets: tuple[int, ...]) -> Answer:
        started = self._exchange.now
        is_pushed: bool = yield self._finish_stream(tickets)
        self._exchange.usage.moving += self._exchange.now - started
        return is_pushed

    def _in_thread(self, work: Generator[simpy.Event, Any, Any]) -> simpy.Process:
        """Do something after what the thread has been given before."""
        self._thread = self._env.process(_after(self._thread, work))
        return self._thread

    def _stream_gradient(self, start: float, seconds: float) -> Generator[simpy.Event, Any, float | None]:
        """Push buckets as they are complete; returns when the last byte arrives, None if training has ended."""
        if not (yield from self._wait_for_slot()):
            return None
        arrival = self._exchange.now
        num_bytes = self._exchange.costs.push_bytes / self._num_buckets
        for number in range(1, self._num_buckets + 1):
            backward = BACKWARD_SHARE * number / self._num_buckets
            ready = start + seconds * (1 - BACKWARD_SHARE + backward)
            if ready > self._exchange.now:
                yield self._env.timeout(ready - self._exchange.now)
            arrival = yield from self._exchange.network.put(self._index, num_bytes)
        return arrival

    def _finish_stream(self, tickets: tuple[int, ...]) -> simpy.Process:
        """The gradient is complete: push what is left, and announce it."""
        if self._stream is None:  # the corpus has ended before the last batch of the push
            self._expect_gradient(self._exchange.now, 0.0)
        stream, self._stream = self._stream, None
        assert stream is not None
        push = self._describe(tickets)

        def finish() -> Answer:
            arrival = stream.value
            if arrival is None:
                return False
            left = max(0.0, arrival - self._exchange.now)
            yield self._env.timeout(left + self._exchange.round_trip)  # the end of the flush, the announcement
            self._announce(push)
            return True

        return self._in_thread(finish())


class OverlappedWorker(PushOverlappedWorker):
    """Pushes and pulls while the next gradient is being computed; gradients are one update staler for it."""

    def __init__(self, index: int, exchange: Exchange, timeline: Timeline) -> None:
        super().__init__(index, exchange, timeline)
        self._transfer: simpy.Process | None = None

    def _give(self, tickets: tuple[int, ...]) -> Waiting:
        pushed = self._finish_stream(tickets)
        with self._timeline.span("wait"):
            yield from self._collect()
        while len(self._ahead) < DRAWS_AHEAD:
            yield from self._draw_ahead()
        self._transfer = self._in_thread(self._wait_and_fetch(pushed))
        if not self._working.computes_ahead(self._version):
            with self._timeline.span("wait"):
                yield from self._collect()

    def _drawing_seconds(self) -> float:
        """The thread has drawn, after its pull."""
        return 0.0 if self._ahead else super()._drawing_seconds()

    def _take(self) -> Waiting:
        """Nothing: `_give` has put the newest parameters that are there in place."""
        yield from ()

    def _end(self) -> Waiting:
        yield from self._collect()

    def _wait_and_fetch(self, pushed: simpy.Process) -> Generator[simpy.Event, Any, tuple[int, Any] | None]:
        if not pushed.value or not (yield from self._wait_for_servers()):
            return None
        fetched = yield from self._fetch()
        yield from self._draw_ahead()
        return fetched

    def _draw_ahead(self) -> Waiting:
        yield self._env.timeout(2 * self._exchange.round_trip)  # the stop flag, the cursor
        self._ahead.append(self._draw_new())

    def _collect(self) -> Waiting:
        """Wait for the transfer of the gradient before; take its parameters."""
        if self._transfer is None:
            return
        started = self._exchange.now
        transfer, self._transfer = self._transfer, None
        fetched = yield transfer
        self._exchange.usage.waiting += self._exchange.now - started
        if fetched is None:
            self._is_finished = True
        else:
            self._version, self._parameters = fetched


WORKERS: dict[str, type[SimulatedWorker]] = {
    "none": SimulatedWorker,
    "push": PushOverlappedWorker,
    "full": OverlappedWorker,
}


def _after(before: simpy.Process | None, work: Generator[simpy.Event, Any, Any]) -> Generator[simpy.Event, Any, Any]:
    if before is not None:
        yield before
    return (yield from work)
