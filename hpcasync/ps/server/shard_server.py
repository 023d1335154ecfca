"""What every server does with an order of the coordinator."""

from contextlib import AbstractContextManager

import torch
from mpi4py import MPI

from hpcasync.comm.shards import Shard
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.observer import SaveRequest, ShardSaver
from hpcasync.ps.protocol.orders import Kind, Order
from hpcasync.ps.server.compensation import DelayCompensation
from hpcasync.ps.server.group_sum import GroupSum
from hpcasync.ps.server.polling import Polling
from hpcasync.ps.server.shard_state import ShardState, clip_factor
from hpcasync.ps.transport.link import Link
from hpcasync.timeline import Timeline

# Of messages that tell the coordinator what has been saved.
SAVED_TAG = 2


class ShardServer:
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
        self._polling = Polling(link)
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
        self._polling.arrived(order.worker, order.sequence)
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
        # Read while there is nothing else to do, else when it is applied; now, if its worker needs the slot or it can
        # only be read whole.
        num_taken = sum(unread.worker == order.worker for unread in self._unread)
        if num_taken == self._link.num_slots or not self._link.wire.has_blocks:
            self._fold()

    def _drop(self, order: Order) -> None:
        self._polling.arrived(order.worker, order.sequence)
        self._fold()  # a slot that is given back gives back those before it
        self._unread.append(order)
        self._consume()

    def _fold(self) -> None:
        self._sum.fold()
        self._consume()

    def _read_while_idle(self) -> bool:
        """Read the gradients that wait in their slots, if any: their update will have less to do, and come sooner."""
        if not self._unread:
            return False
        with self.timeline.span("read"):
            self._fold()
        return True

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


def initial_shard(vector: torch.Tensor, shard: Shard, device: torch.device | None = None) -> torch.Tensor:
    """A server's own copy of its shard of the flat parameter vector, on a device (default: CPU)."""
    return vector[shard.start : shard.stop].detach().to(torch.device("cpu") if device is None else device, copy=True)
