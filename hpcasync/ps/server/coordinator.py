"""Server 0: takes what arrived, and has all servers accumulate, apply and publish as `Coordination` decides.

All servers, itself included, execute the same orders in the same sequence.
"""

import time

import torch

from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.coordination import (
    Apply,
    Coordination,
    Dropped,
    Effects,
    Exhausted,
    Finished,
    Handled,
    Lost,
    Publish,
    Report,
    Settled,
    Stop,
)
from hpcasync.ps.protocol.lost_work import Offer
from hpcasync.ps.protocol.observer import Observer, SaveRequest, ShardSaver
from hpcasync.ps.protocol.orders import Kind, Order
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.ps.protocol.updates import Update
from hpcasync.ps.server.compensation import DelayCompensation
from hpcasync.ps.server.shard_server import SAVED_TAG, ShardServer
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.transport.link import Link
from hpcasync.ps.transport.order_channel import OrderSender
from hpcasync.ps.transport.record_codec import decode_record


class Coordinator(ShardServer):
    """Server 0: it orders the updates, and is the one that talks to the training program.

    Attributes:
        busy: part of the time in which it had something to do, once `run` has returned.
    """

    def __init__(
        self,
        link: Link,
        state: ShardState,
        saver: ShardSaver,
        observer: Observer,
        coordination: Coordination,
        *,
        clip_norm: float,
        compensation: DelayCompensation | None = None,
        lookahead: float = 0.0,
    ) -> None:
        version = coordination.updates.version
        super().__init__(link, state, saver, clip_norm=clip_norm, version=version, compensation=compensation)
        self._observer = observer
        self._coordination = coordination
        self._lookahead = lookahead
        self._orders = OrderSender(link.server_comm)
        self._seen_words = b""
        self._num_pending_saves = 0
        self._has_saved_last = False
        self._learning_rate = 0.0
        self.busy = 0.0

    def run(self) -> None:
        """Serve until every worker has finished."""
        coordination, began = self._coordination, time.perf_counter()
        while not coordination.is_finished:
            # First: a resumed run may be over before it begins.
            self._stop_if_over()
            is_busy = self._take_arrivals()
            self._let_go_of_the_dead()
            due = coordination.advance()
            self._carry_out(due)
            self._collect_saves()
            self._orders.advance()
            self._link.make_progress()
            if is_busy or due:
                self._polling.reset()
            elif not self._read_while_idle():
                self._polling.wait()
        # A resumed run that is over before it begins takes no time that a coarse clock would show.
        self.busy = 1 - self._polling.idle_seconds / max(1e-9, time.perf_counter() - began)

    def save(self, request: SaveRequest) -> None:
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
        self._link.control.wake_followers()
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
        if order.kind not in (Kind.ACCUMULATE, Kind.DROP) or not self._coordination.updates.should_apply():
            self._link.control.wake_followers()
        self._execute(order, request)

    def _after_apply(self, order: Order) -> None:
        """A version is published when all shards have it."""
        waiting, began = self._link.control.make_wait(), time.perf_counter()
        while not self._link.control.have_applied(order.version):
            self._orders.advance()
            self._link.make_progress()
            # Making progress may have given the core away (Open MPI's yield_when_idle).
            if not self._link.control.have_applied(order.version):
                waiting.wait()
        self._polling.idle_seconds += time.perf_counter() - began

    def _take_arrivals(self) -> bool:
        taken, lost = False, self._coordination.lost
        if lost is None:
            # One comparison where nothing has changed, however many workers there are.
            words = self._link.control.local()[ControlWords.of_workers(self._link.num_workers)].tobytes()
            if words == self._seen_words:
                return False
            self._seen_words = words
        for worker in range(self._link.num_workers):
            if lost is None or not lost.is_lost(worker):
                taken = self._take_arrivals_of(worker) or taken
        return taken

    def _take_arrivals_of(self, worker: int) -> bool:
        coordination, words = self._coordination, self._link.control.local()
        # Read before the count: see `Coordination.look`.
        has_finished = words[ControlWords.finished(worker)] != 0
        num_rests = int(words[ControlWords.rests(worker)])
        announced = int(words[ControlWords.announced(worker)])
        taken = False
        while (sequence := coordination.updates.num_received(worker) + 1) <= announced:
            taken = True
            self._observer.after_arrival(worker)
            self._link.mpi_window.sync()
            record = decode_record(self._link.own_record(worker, sequence))
            self._carry_out(coordination.receive(worker, record))
            self._carry_out(coordination.advance())
        self._carry_out(coordination.look(worker, has_finished=has_finished, num_rests=num_rests))
        return taken

    def _let_go_of_the_dead(self) -> None:
        coordination = self._coordination
        if coordination.lost is None:
            return
        for worker in coordination.lost.new_deaths():
            self._take_arrivals_of(worker)  # what it had announced is whole
            num_drawn = int(self._link.control.local()[ControlWords.CURSOR])
            self._carry_out(coordination.let_go(worker, num_drawn))
        self._carry_out(coordination.share())

    def _carry_out(self, effects: Effects) -> None:
        link, observer = self._link, self._observer
        for effect in effects:
            match effect:
                case Order():
                    self._order(effect)
                case Apply(update):
                    order = Order.to_apply(update, observer.learning_rate(update), self._lookahead)
                    self._learning_rate = order.learning_rate
                    self._order(order)
                case Publish(version):
                    link.control.store(self._rank, ControlWords.PUBLISHED, version)
                case Settled(worker, sequence):
                    link.control.tell_worker(worker, ControlWords.settled(worker), sequence)
                case Handled(worker, sequence):
                    link.control.tell_worker(worker, ControlWords.handled(worker), sequence)
                case Report(update):
                    self._report(update, self._learning_rate)
                case Dropped(record, is_stale):
                    observer.after_drop(record, is_stale=is_stale)
                case Finished(worker):
                    observer.after_finish(worker)
                case Lost(worker, is_last):
                    observer.after_loss(worker, is_last=is_last)
                case Offer(worker, ticket):
                    link.control.offer(worker, ticket)
                case Exhausted():
                    link.control.tell_everybody(ControlWords.EXHAUSTED, 1)
                case Stop():
                    link.control.tell_everybody(ControlWords.STOP, 1)
                    # At once: workers may take long to notice, and what asked for the stop may leave little time.
                    self.save_last()

    def _report(self, update: Update, learning_rate: float) -> None:
        request = self._observer.after_update(update, learning_rate)
        if request is not None:
            self.save(request)
        self._stop_if_over()

    def _stop_if_over(self) -> None:
        if not self._coordination.updates.is_stopping and self._observer.should_stop():
            self._carry_out(self._coordination.stop())

    def _collect_saves(self) -> None:
        for saved in self._saver.poll():
            self._count_save(saved)
        while self._num_pending_saves and self._link.server_comm.Iprobe(tag=SAVED_TAG):
            self._count_save(self._link.server_comm.recv(tag=SAVED_TAG))

    def _count_save(self, saved: SavedShard) -> None:
        self._num_pending_saves -= 1
        self._observer.shard_saved(saved)
