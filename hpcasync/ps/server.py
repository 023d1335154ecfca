"""The servers: take what arrived, accumulate, and when a group is complete apply it and publish a version.

Server 0, the coordinator, decides (`UpdateState`) and sends each decision as an `Order` to the other servers; all
servers, itself included, execute the same orders in the same sequence.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from mpi4py import MPI

from hpcasync.comm.shards import Shard
from hpcasync.ps.attention import Attention
from hpcasync.ps.compensation import DelayCompensation
from hpcasync.ps.control_words import ControlWords
from hpcasync.ps.group_sum import GroupSum
from hpcasync.ps.link import Link
from hpcasync.ps.lookahead import lookahead_steps
from hpcasync.ps.observer import Observer, SaveRequest, ShardSaver
from hpcasync.ps.orders import Kind, Order, OrderReceiver, OrderSender
from hpcasync.ps.record import decode_record
from hpcasync.ps.saved_shard import SavedShard
from hpcasync.ps.shard_state import ShardState, clip_factor
from hpcasync.ps.state import Arrival, Update, UpdateState
from hpcasync.ps.survival import Survival
from hpcasync.timeline import Timeline

_SAVED_TAG = 2


class _ShardServer:
    """What every server does with an order."""

    # Replaced where one is recorded.
    timeline = Timeline()

    def __init__(
        self,
        link: Link,
        state: ShardState,
        saver: ShardSaver,
        *,
        clip_norm: float,
        version: int,
        compensation: DelayCompensation | None = None,
    ) -> None:
        assert link.server_index is not None
        self._link = link
        self._index = link.server_index
        self._rank = link.comm.rank
        self._shard = link.shards[self._index]
        self._state = state
        self._saver = saver
        self._clip_norm = clip_norm
        self._compensation = compensation
        self._sum = GroupSum(self._shard.size, link.wire, state.parameters.device, state.threads)
        self._unread: list[Order] = []  # pushes of the group that lie in their slots still
        self._group: list[Order] = []  # pushes of the group
        self._attention = Attention(link)
        self._publish_initial(version)

    def _publish_initial(self, version: int) -> None:
        self._link.begin_writing(version)
        self._link.own_buffer(version).copy_(self._state.parameters)
        self._link.data.sync()
        if self._index == 0:
            self._link.control.store(self._rank, ControlWords.PUBLISHED, version)

    def _execute(self, order: Order, request: SaveRequest | None = None) -> None:
        with self._span(order):
            self._carry_out(order, request)

    def _span(self, order: Order) -> AbstractContextManager[None]:
        if order.kind is not Kind.APPLY:
            return self.timeline.span(order.kind.name.lower(), worker=order.worker)
        staleness = [(push.worker, order.version - 1 - push.version) for push in self._group]
        return self.timeline.span("apply", version=order.version, staleness=staleness)

    def _carry_out(self, order: Order, request: SaveRequest | None) -> None:
        if order.kind is Kind.ACCUMULATE:
            self._accumulate(order)
        elif order.kind is Kind.DROP:
            self._drop(order)
        elif order.kind is Kind.APPLY:
            self._apply(order)
        elif order.kind is Kind.DISCARD:
            self._group.clear()
            self._sum.clear()
            self._consume()
        elif order.kind is Kind.SAVE:
            assert request is not None
            self._save(request)

    def _accumulate(self, order: Order) -> None:
        self._attention.arrived(order.worker, order.sequence)
        self._link.data.sync()
        slot = self._link.slot(order.worker, order.sequence)
        self._unread.append(order)
        self._group.append(order)
        if self._compensation is not None:
            gradient = torch.empty_like(self._state.parameters)
            self._link.wire.copy(gradient, slot)
            self._compensation.correct(gradient, order.num_tokens, order.version, self._state.parameters)
            self._sum.add(gradient)
            self._consume()
            return
        self._sum.add_slot(slot)
        # Read when it is applied, unless its worker needs the slot or it can only be read whole.
        num_taken = sum(unread.worker == order.worker for unread in self._unread)
        if num_taken == self._link.num_slots or not self._link.wire.has_blocks:
            self._fold()

    def _drop(self, order: Order) -> None:
        self._attention.arrived(order.worker, order.sequence)
        self._fold()  # a slot that is given back gives back those before it
        self._unread.append(order)
        self._consume()

    def _fold(self) -> None:
        self._sum.fold()
        self._consume()

    def _consume(self) -> None:
        """Give the slots back whose gradients have been read."""
        for order in self._unread:
            self._link.tell_worker(order.worker, ControlWords.consumed(order.worker), order.sequence)
        self._unread.clear()

    def _apply(self, order: Order) -> None:
        scale = 1.0 / max(1, order.num_tokens)
        self._link.data.sync()
        if self._clip_norm:
            squared = self._link.server_comm.allreduce(self._sum.squared_norm())
            scale *= clip_factor(scale * float(squared) ** 0.5, self._clip_norm)
        self._link.begin_writing(order.version)
        self._state.apply(
            self._sum.block,
            scale=scale,
            learning_rate=order.learning_rate,
            version=order.version,
            publish=self._link.own_buffer(order.version),
            lookahead=order.lookahead,
        )
        self._group.clear()
        self._sum.clear()
        if self._compensation is not None:
            self._compensation.remember(order.version, self._state.parameters)
        self._link.data.sync()
        self._consume()
        self._after_apply(order.version)

    def _after_apply(self, version: int) -> None:
        """This shard has the version."""
        raise NotImplementedError("the coordinator waits for the others, who tell it")

    def _save(self, request: SaveRequest) -> None:
        if request.checkpoint:
            self._saver.save_shard(request.name, self._index, self._shard, self._state.state_tensors())
        if request.snapshot:
            averaged = self._state.parameters if self._state.ema is None else self._state.ema
            vector = self._gather(averaged.detach())
            if vector is not None:
                self._keep_snapshot(request, vector)

    def _keep_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        raise NotImplementedError("only the coordinator assembles snapshots")

    def _gather(self, values: torch.Tensor) -> torch.Tensor | None:
        """All shards' values as one vector, at the coordinator."""
        comm = self._link.server_comm
        shards = self._link.shards
        vector = torch.empty(shards[-1].stop, dtype=torch.float32) if self._index == 0 else None
        layout = ([shard.size for shard in shards], [shard.start for shard in shards])
        comm.Gatherv(values.cpu().numpy(), None if vector is None else [vector.numpy(), layout, MPI.FLOAT])
        return vector


class Follower(_ShardServer):
    """A server other than the coordinator."""

    def run(self) -> None:
        """Execute orders until the coordinator ends the run."""
        orders = OrderReceiver(self._link.server_comm)
        while True:
            self._report_saves(self._saver.poll())
            received = orders.poll()
            if received is None:
                self._link.serve_pulls()  # looking for orders has let MPI progress
                self._attention.wait()
                continue
            self._attention.reset()
            order, request = received
            if order.kind is Kind.FINISH:
                break
            self._execute(order, request)
        self._report_saves(self._saver.wait())

    def _after_apply(self, version: int) -> None:
        self._link.tell_applied(version)

    def _report_saves(self, results: Iterable[SavedShard]) -> None:
        for saved in results:
            self._link.server_comm.send(saved, dest=0, tag=_SAVED_TAG)


class Coordinator(_ShardServer):
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
        survival: Survival | None = None,
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
                self._attention.reset()
            else:
                self._attention.wait()

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
            self._count_save(self._link.server_comm.recv(tag=_SAVED_TAG))

    def _keep_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        self._observer.save_snapshot(request, vector)

    def _order(self, order: Order, request: SaveRequest | None = None) -> None:
        self._orders.send(order, request)
        # A push that completes a group is followed by the order to apply it: one ring for both.
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

    def _let_go_of_the_dead(self, survival: Survival) -> None:
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
        while self._num_pending_saves and self._link.server_comm.Iprobe(tag=_SAVED_TAG):
            self._count_save(self._link.server_comm.recv(tag=_SAVED_TAG))

    def _count_save(self, saved: SavedShard) -> None:
        self._num_pending_saves -= 1
        self._observer.shard_saved(saved)


def initial_shard(vector: torch.Tensor, shard: Shard, device: torch.device | None = None) -> torch.Tensor:
    """A server's own copy of its shard of the flat parameter vector, on a device (default: CPU)."""
    return vector[shard.start : shard.stop].detach().to(torch.device("cpu") if device is None else device, copy=True)
