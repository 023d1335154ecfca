"""The asynchronous modes: workers' exchange over RMA, and the coordinator's view of the run."""

from collections import deque
from collections.abc import Iterator

import torch

from hpcasync.comm.roles import Roles
from hpcasync.deaths.abort import abort_after
from hpcasync.deaths.policy import Deaths
from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.ps.protocol.working import Source
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.timeline import Timeline
from hpcasync.train.loop.batch_order import TicketOrder
from hpcasync.train.supervise.supervisor import Supervisor

# After the checkpoint that a signal asked for, for ranks that hang: time may be short then.
_PATIENCE_SECONDS = 15.0


class AsynchronousExchange:
    """A worker that waits for nobody.

    Attributes:
        numbers: that it draws, where each worker has some of its own; None: from all.
    """

    # Where they are copied when they are pushed: one that is computed, and those that are being pushed meanwhile.
    _NUM_GRADIENTS = 1

    def __init__(self, client: Client, flat: FlatParameters, batches: TicketOrder, timeline: Timeline) -> None:
        self._client = client
        self._flat = flat
        self._batches = batches
        self._timeline = timeline
        self._version = 0
        self._is_finished = False
        # Drawn already, in order. Pushes are in the order of draws all the same, which is what the others rely on.
        self._ahead: deque[int | None] = deque()
        self.numbers: Iterator[int] | None = None
        client.place_gradients(flat, self._NUM_GRADIENTS)

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    @property
    def version(self) -> int:
        return self._version

    def draw(self) -> int | None:
        source = Source.END if self._is_finished else self._client.next_source()
        if source is Source.END:
            self._is_finished = True
            return None
        if self._ahead:
            return self._ahead.popleft()
        ticket, self._is_finished = self._draw(source)
        return ticket

    def draw_ahead(self) -> int | None:
        """As `draw`; nothing is over yet where there are no more."""
        source = self._client.next_source()
        return None if source is Source.END else self._draw(source)[0]

    def next_ticket(self) -> int | None:
        if not self._ahead:
            self._ahead.append(self.draw())
        return self._ahead[0]

    def expect_gradient(self) -> None:
        """Nothing: the gradient is pushed once it is complete."""

    def push(self, gradient: torch.Tensor, record: PushRecord) -> None:
        if not record.tickets:
            self.rest()
            return
        with self._timeline.span("push"):
            is_pushed = self._push(gradient, record)
        if not is_pushed:
            self._is_finished = True
        elif not self._is_finished:
            with self._timeline.span("wait"):
                self._is_finished = not self._client.wait()

    def rest(self) -> bool:
        """There was nothing to draw. Where workers may die, one that dies leaves batches to the others."""
        if not self._is_finished:
            self._is_finished = not (self._client.working.may_lose_workers and self._client.rest())
        return not self._is_finished

    def _draw(self, source: Source) -> tuple[int | None, bool]:
        """The next ticket, and whether there never will be one."""
        if source is Source.OFFER:
            return self._client.take_offer(), False
        draw = self._client.draw if self.numbers is None else self.numbers.__next__
        ticket = self._batches.ticket(draw()) if source is Source.CURSOR else None
        return ticket, self._client.working.drew(has_batch=ticket is not None)

    def _push(self, gradient: torch.Tensor, record: PushRecord) -> bool:
        """False if training has ended."""
        return self._client.push(gradient, record, is_checked=True)

    def pull(self, parameters: torch.Tensor) -> None:
        if not self._is_finished:
            with self._timeline.span("pull"):
                self._version = self._client.pull(parameters)

    def close(self) -> None:
        self._client.finish()


class CoordinatorObserver:
    """The supervisor as the coordinator's `ps.protocol.observer.Observer`, and the watch over its workers."""

    def __init__(self, supervisor: Supervisor, roles: Roles, deaths: Deaths) -> None:
        self._supervisor = supervisor
        self._deaths = deaths
        self._watch = supervisor.watch(roles)
        self.learning_rate = supervisor.learning_rate
        self.after_update = supervisor.after_update
        self.after_drop = supervisor.after_drop

    def begin(self) -> None:
        self._supervisor.start()
        self._watch.begin()

    def final_request(self) -> SaveRequest | None:
        return self._supervisor.final_request()

    def after_arrival(self, worker: int) -> None:
        """Who pushes is not stalled."""
        self._watch.pushed(worker)

    def after_finish(self, worker: int) -> None:
        """Nor is who has nothing more to do."""
        self._watch.finished(worker)

    def after_loss(self, worker: int, *, is_last: bool) -> None:
        """Say which one has died; stop watching it."""
        self._supervisor.lose(self._watch.died(worker), is_last=is_last)
        self._deaths.acknowledge(worker)

    def end(self) -> None:
        """All workers have finished, and all has been saved."""

    def save_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        self._supervisor.save_snapshot(request, vector)

    def shard_saved(self, saved: SavedShard) -> None:
        """Count it: a checkpoint is complete with its last shard."""
        if self._supervisor.shard_saved(saved) and self._supervisor.ending.is_preempted:
            text = f"hpcasync: saved; some ranks have not ended in {_PATIENCE_SECONDS:g} s: the job ends without them"
            abort_after(_PATIENCE_SECONDS, self._supervisor.ending.exit_code, text)

    def should_stop(self) -> bool:
        self._watch.check()
        return self._supervisor.should_stop()
