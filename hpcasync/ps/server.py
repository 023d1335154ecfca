"""The servers: take what arrived, accumulate, and when a group is complete apply it and publish a version.

Server 0, the coordinator, decides (`UpdateState`) and sends each decision as an `_Order` to the other servers; all
servers, itself included, execute the same orders in the same sequence.
"""

import enum
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from mpi4py import MPI

from hpcasync.comm.shards import Shard
from hpcasync.comm.waiting import server_backoff
from hpcasync.ps.compensation import DelayCompensation
from hpcasync.ps.group_sum import GroupSum
from hpcasync.ps.link import ControlWords, Link
from hpcasync.ps.observer import Observer, SaveRequest, ShardSaver
from hpcasync.ps.record import decode_record, record_bytes
from hpcasync.ps.saved_shard import SavedShard
from hpcasync.ps.shard_state import ShardState, clip_factor
from hpcasync.ps.state import Arrival, Update, UpdateState
from hpcasync.ps.survival import Survival
from hpcasync.timeline import Timeline


class _Kind(enum.IntEnum):
    ACCUMULATE = 0
    DROP = 1
    APPLY = 2
    DISCARD = 3  # the group: training is over
    SAVE = 4
    FINISH = 5


@dataclass(frozen=True)
class _Order:
    kind: _Kind
    worker: int = 0
    sequence: int = 0
    version: int = 0  # that the gradient was computed from
    num_tokens: int = 0
    update: Update | None = None
    learning_rate: float = 0.0
    save: SaveRequest | None = None


_ORDER_TAG = 1
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
        self._sum = GroupSum(self._shard.size, link.wire, state.parameters.device)
        self._unread: list[_Order] = []  # pushes of the group that lie in their slots still
        self._memory = link.data.memory(self._rank)
        self._publish_initial(version)

    def _publish_initial(self, version: int) -> None:
        self._link.begin_writing(version)
        self._link.own_buffer(version).copy_(self._state.parameters)
        self._link.data.sync()
        if self._index == 0:
            self._link.control.store(self._rank, ControlWords.PUBLISHED, version)

    def _execute(self, order: _Order) -> None:
        with self._span(order):
            self._carry_out(order)

    def _span(self, order: _Order) -> AbstractContextManager[None]:
        if order.update is None:
            return self.timeline.span(order.kind.name.lower(), worker=order.worker)
        pushes = zip(order.update.pushes, order.update.staleness, strict=True)
        staleness = [(push.worker, num_updates) for push, num_updates in pushes]
        return self.timeline.span("apply", version=order.update.version, staleness=staleness)

    def _carry_out(self, order: _Order) -> None:
        if order.kind is _Kind.ACCUMULATE:
            self._accumulate(order)
        elif order.kind is _Kind.DROP:
            self._drop(order)
        elif order.kind is _Kind.APPLY:
            assert order.update is not None
            self._apply(order.update, order.learning_rate)
        elif order.kind is _Kind.DISCARD:
            self._sum.clear()
            self._consume()
        elif order.kind is _Kind.SAVE:
            assert order.save is not None
            self._save(order.save)

    def _accumulate(self, order: _Order) -> None:
        self._link.data.sync()
        slot = self._memory[self._link.gradient_offset(self._index, order.worker, order.sequence) :]
        self._unread.append(order)
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

    def _drop(self, order: _Order) -> None:
        self._fold()  # a slot that is given back gives back those before it
        self._unread.append(order)
        self._consume()

    def _fold(self) -> None:
        self._sum.fold()
        self._consume()

    def _consume(self) -> None:
        """Give the slots back whose gradients have been read."""
        for order in self._unread:
            self._link.control.store(self._rank, ControlWords.consumed(order.worker), order.sequence)
        self._unread.clear()

    def _apply(self, update: Update, learning_rate: float) -> None:
        scale = 1.0 / max(1, update.num_tokens)
        self._link.data.sync()
        if self._clip_norm:
            squared = self._link.server_comm.allreduce(self._sum.squared_norm())
            scale *= clip_factor(scale * float(squared) ** 0.5, self._clip_norm)
        self._link.begin_writing(update.version)
        self._state.apply(
            self._sum.block,
            scale=scale,
            learning_rate=learning_rate,
            version=update.version,
            publish=self._link.own_buffer(update.version),
        )
        self._sum.clear()
        if self._compensation is not None:
            self._compensation.remember(update.version, self._state.parameters)
        self._link.data.sync()
        self._consume()
        self._link.server_comm.Barrier()  # a version is published when all shards have it

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
        backoff = server_backoff(spans_nodes=self._link.data.spans_nodes)
        comm = self._link.server_comm
        while True:
            self._report_saves(self._saver.poll())
            if comm.Iprobe(source=0, tag=_ORDER_TAG):
                backoff.reset()
                order: _Order = comm.recv(source=0, tag=_ORDER_TAG)
                if order.kind is _Kind.FINISH:
                    break
                self._execute(order)
            else:
                self._link.make_progress()
                backoff.wait()
        self._report_saves(self._saver.wait())

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
        survival: Survival | None = None,
    ) -> None:
        super().__init__(link, state, saver, clip_norm=clip_norm, version=decisions.version, compensation=compensation)
        self._observer = observer
        self._decisions = decisions
        self._survival = survival
        self._num_pending_saves = 0
        self._has_saved_last = False

    def run(self) -> None:
        """Serve until every worker has finished; then end the other servers."""
        backoff = server_backoff(spans_nodes=self._link.data.spans_nodes)
        while not self._is_finished():
            # First: a resumed run may be over before it begins.
            if not self._decisions.is_stopping and self._observer.should_stop():
                self._stop()
            if self._take_arrivals() or self._decisions.should_apply():
                backoff.reset()
            if self._survival is not None:
                self._let_go_of_the_dead(self._survival)
            self._advance()
            self._collect_saves()
            self._link.make_progress()
            backoff.wait()

    def save(self, request: SaveRequest) -> None:
        """Save the newest version."""
        self._num_pending_saves += len(self._link.shards) if request.checkpoint else 0
        self._order(_Order(_Kind.SAVE, save=request))

    def save_last(self) -> None:
        """Save what is to be saved of the last version, once."""
        request = None if self._has_saved_last else self._observer.final_request()
        self._has_saved_last = True
        if request is not None:
            self.save(request)

    def finish(self) -> None:
        """End the other servers and wait until everything that was to be saved is."""
        self._order(_Order(_Kind.FINISH))
        for saved in self._saver.wait():
            self._count_save(saved)
        while self._num_pending_saves:
            self._count_save(self._link.server_comm.recv(tag=_SAVED_TAG))

    def _keep_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        self._observer.save_snapshot(request, vector)

    def _order(self, order: _Order) -> None:
        comm = self._link.server_comm
        requests = [comm.isend(order, dest=other, tag=_ORDER_TAG) for other in range(1, comm.size)]
        self._execute(order)
        for request in requests:
            request.wait()

    def _is_finished(self) -> bool:
        # Who rests counts as finished until it is woken.
        is_awake = self._survival is not None and not self._survival.work.has_ended
        return self._decisions.is_finished and not is_awake

    def _take_arrivals(self) -> bool:
        taken = False
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
        survival.share(self._link.control, self._rank, self._decisions)

    def _receive(self, worker: int, sequence: int) -> None:
        self._observer.after_arrival(worker)
        self._link.data.sync()
        offset = self._link.record_offset(0, worker, sequence)
        words = self._memory[offset : offset + record_bytes(self._link.max_tickets)].view(torch.float64)
        record = decode_record(words)
        if self._survival is not None:
            self._survival.work.arrived(worker, record.tickets)
        accepted = self._decisions.receive(Arrival(worker, sequence, record))
        if not accepted:
            self._observer.after_drop(record, is_stale=not self._decisions.is_stopping)
            # No version will have it: nobody is to wait for that.
            self._link.control.store(self._rank, ControlWords.settled(worker), sequence)
        kind = _Kind.ACCUMULATE if accepted else _Kind.DROP
        self._order(_Order(kind, worker, sequence, record.version, record.num_tokens))

    def _advance(self) -> None:
        """Make the update that is due, if any; then let the workers go on that waited for it."""
        made = self._update() if self._decisions.should_apply() else None
        for worker, sequence in self._decisions.tell():
            self._link.control.store(self._rank, ControlWords.handled(worker), sequence)
        if made is not None:
            self._report(*made)

    def _update(self) -> tuple[Update, float]:
        update = self._decisions.apply()
        learning_rate = self._observer.learning_rate(update) * update.rate_factor
        self._order(_Order(_Kind.APPLY, update=update, learning_rate=learning_rate))
        control = self._link.control
        control.store(self._rank, ControlWords.PUBLISHED, update.version)
        for push in update.pushes:
            control.store(self._rank, ControlWords.settled(push.worker), push.sequence)
        return update, learning_rate

    def _report(self, update: Update, learning_rate: float) -> None:
        request = self._observer.after_update(update, learning_rate)
        if request is not None:
            self.save(request)
        if self._observer.should_stop():
            self._stop()

    def _stop(self) -> None:
        if not self._decisions.is_stopping:
            self._decisions.stop()
            self._order(_Order(_Kind.DISCARD))
            self._link.control.store(self._rank, ControlWords.STOP, 1)
            # At once: workers may take long to notice, and what asked for the stop may leave little time.
            self.save_last()

    def _collect_saves(self) -> None:
        for saved in self._saver.poll():
            self._count_save(saved)
        while self._link.server_comm.Iprobe(tag=_SAVED_TAG):
            self._count_save(self._link.server_comm.recv(tag=_SAVED_TAG))

    def _count_save(self, saved: SavedShard) -> None:
        self._num_pending_saves -= 1
        self._observer.shard_saved(saved)


def initial_shard(vector: torch.Tensor, shard: Shard, device: torch.device | None = None) -> torch.Tensor:
    """A server's own copy of its shard of the flat parameter vector, on a device (default: CPU)."""
    return vector[shard.start : shard.stop].detach().to(torch.device("cpu") if device is None else device, copy=True)
