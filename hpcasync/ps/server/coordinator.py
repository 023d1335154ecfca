"""Server 0: takes what arrived, decides, and has all servers accumulate, apply and publish.

It decides by `UpdateState` and sends each decision as an `Order` to the other servers; all servers, itself included,
execute the same orders in the same sequence.
"""

import torch

from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.lookahead import lookahead_steps
from hpcasync.ps.protocol.observer import Observer, SaveRequest, ShardSaver
from hpcasync.ps.protocol.orders import Kind, Order
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.ps.protocol.updates import Arrival, Update, UpdateState
from hpcasync.ps.server.compensation import DelayCompensation
from hpcasync.ps.server.lost_workers import LostWorkers
from hpcasync.ps.server.shard_server import SAVED_TAG, ShardServer
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.transport.link import Link
from hpcasync.ps.transport.order_channel import OrderSender
from hpcasync.ps.transport.record_codec import decode_record


class Coordinator(ShardServer):
    """Server 0: it orders the updates, and is the one that talks to the training program."""

    def __init__(
        self,
        link: Link,
        state: ShardState,
        saver: ShardSaver,
        observer: Observer,
        decisions: UpdateState,
        *,
        clip_norm: float,
        compensation: DelayCompensation | None = None,
        lookahead: float = 0.0,
        survival: LostWorkers | None = None,
    ) -> None:
        super().__init__(link, state, saver, clip_norm=clip_norm, version=decisions.version, compensation=compensation)
        self._observer = observer
        self._decisions = decisions
        self._lookahead = lookahead
        self._survival = survival
        self._orders = OrderSender(link.server_comm)
        self._seen_words = b""
        self._num_pending_saves = 0
        self._has_saved_last = False

    def run(self) -> None:
        """Serve until every worker has finished; then end the other servers."""
        while not self._is_finished():
            # First: a resumed run may be over before it begins.
            if not self._decisions.is_stopping and self._observer.should_stop():
                self._stop()
            is_busy = self._take_arrivals() or self._decisions.should_apply()
            if self._survival is not None:
                self._let_go_of_the_dead(self._survival)
            self._advance()
            self._collect_saves()
            self._orders.advance()
            self._link.make_progress()
            if is_busy:
                self._polling.reset()
            elif not self._read_while_idle():
                self._polling.wait()

    def save(self, request: SaveRequest) -> None:
        """Save the newest version."""
        self._num_pending_saves += len(self._link.shards) if request.checkpoint else 0
        self._order(Order(Kind.SAVE), request)

    def save_last(self) -> None:
        """Save what is to be saved of the last version, once."""
        request = None if self._has_saved_last else self._observer.final_request()
        self._has_saved_last = True
        if request is not None:
            self.save(request)

    def finish(self) -> None:
        """End the other servers and wait until everything that was to be saved is."""
        self._orders.send(Order(Kind.FINISH))
        self._link.wake_followers()
        self._orders.wait()
        for saved in self._saver.wait():
            self._count_save(saved)
        while self._num_pending_saves:
            self._count_save(self._link.server_comm.recv(tag=SAVED_TAG))

    def _keep_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        self._observer.save_snapshot(request, vector)

    def _order(self, order: Order, request: SaveRequest | None = None) -> None:
        self._orders.send(order, request)
        # A push that completes a group is followed by the order to apply it: one wake-up for both.
        if order.kind not in (Kind.ACCUMULATE, Kind.DROP) or not self._decisions.should_apply():
            self._link.wake_followers()
        self._execute(order, request)

    def _after_apply(self, version: int) -> None:
        """A version is published when all shards have it."""
        waiting = self._link.make_wait()
        while not self._link.have_applied(version):
            self._orders.advance()
            self._link.make_progress()
            # Making progress may have given the core away (Open MPI's yield_when_idle).
            if not self._link.have_applied(version):
                waiting.wait()

    def _is_finished(self) -> bool:
        # Who rests counts as finished until it is woken.
        is_awake = self._survival is not None and not self._survival.work.has_ended
        return self._decisions.is_finished and not is_awake

    def _take_arrivals(self) -> bool:
        taken = False
        if self._survival is None:
            # One comparison where nothing has changed, however many workers there are.
            words = self._link.control.local()[ControlWords.of_workers(self._link.num_workers)].tobytes()
            if words == self._seen_words:
                return False
            self._seen_words = words
        for worker in range(self._link.num_workers):
            if self._survival is None or not self._survival.is_lost(worker):
                taken = self._take_arrivals_of(worker) or taken
        return taken

    def _take_arrivals_of(self, worker: int) -> bool:
        words = self._link.control.local()
        # Read before the count: a worker finishes, or rests, after its last announcement.
        has_finished = words[ControlWords.finished(worker)] != 0
        num_rests = int(words[ControlWords.rests(worker)])
        announced = int(words[ControlWords.announced(worker)])
        taken = False
        while self._decisions.num_received(worker) < announced:
            taken = True
            sequence = self._decisions.num_received(worker) + 1
            self._receive(worker, sequence)
            self._advance()
        is_resting = self._survival is not None and self._survival.rests(worker, num_rests)
        if has_finished or is_resting:
            self._decisions.finish(worker)
            self._observer.after_finish(worker)
        if has_finished and self._survival is not None:
            self._survival.work.finished(worker)
        return taken

    def _let_go_of_the_dead(self, survival: LostWorkers) -> None:
        for worker in survival.new_deaths():
            self._take_arrivals_of(worker)  # what it had announced is whole
            survival.let_go(worker, num_drawn=int(self._link.control.local()[ControlWords.CURSOR]))
            self._decisions.finish(worker)
            self._observer.after_loss(worker, is_last=survival.is_stuck)
        survival.share(self._link, self._decisions)

    def _receive(self, worker: int, sequence: int) -> None:
        self._observer.after_arrival(worker)
        self._link.data.sync()
        record = decode_record(self._link.own_record(worker, sequence))
        if self._survival is not None:
            self._survival.work.arrived(worker, record.tickets)
        accepted = self._decisions.receive(Arrival(worker, sequence, record))
        if not accepted:
            self._observer.after_drop(record, is_stale=not self._decisions.is_stopping)
            # No version will have it: nobody is to wait for that.
            self._link.tell_worker(worker, ControlWords.settled(worker), sequence)
        kind = Kind.ACCUMULATE if accepted else Kind.DROP
        self._order(Order(kind, worker, sequence, record.version, record.num_tokens))

    def _advance(self) -> None:
        """Make the update that is due, if any; then let the workers go on that waited for it."""
        made = self._update() if self._decisions.should_apply() else None
        for worker, sequence in self._decisions.tell():
            self._link.tell_worker(worker, ControlWords.handled(worker), sequence)
        if made is not None:
            self._report(*made)

    def _update(self) -> tuple[Update, float]:
        update = self._decisions.apply()
        learning_rate = self._observer.learning_rate(update) * update.rate_factor
        lookahead = lookahead_steps(self._lookahead, update.staleness)
        self._order(Order(Kind.APPLY, 0, 0, update.version, update.num_tokens, learning_rate, lookahead))
        self._link.control.store(self._rank, ControlWords.PUBLISHED, update.version)
        for push in update.pushes:
            self._link.tell_worker(push.worker, ControlWords.settled(push.worker), push.sequence)
        return update, learning_rate

    def _report(self, update: Update, learning_rate: float) -> None:
        request = self._observer.after_update(update, learning_rate)
        if request is not None:
            self.save(request)
        if self._observer.should_stop():
            self._stop()

    def _stop(self) -> None:
        if not self._decisions.is_stopping:
            for push in self._decisions.stop():
                self._observer.after_drop(push.record, is_stale=False)
            self._order(Order(Kind.DISCARD))
            self._link.tell_everybody(ControlWords.STOP, 1)
            # At once: workers may take long to notice, and what asked for the stop may leave little time.
            self.save_last()

    def _collect_saves(self) -> None:
        for saved in self._saver.poll():
            self._count_save(saved)
        while self._num_pending_saves and self._link.server_comm.Iprobe(tag=SAVED_TAG):
            self._count_save(self._link.server_comm.recv(tag=SAVED_TAG))

    def _count_save(self, saved: SavedShard) -> None:
        self._num_pending_saves -= 1
        self._observer.shard_saved(saved)
