"""What every server does with an order of the coordinator."""

from contextlib import AbstractContextManager

import torch
from mpi4py import MPI

from hpcasync.comm.shards import Shard
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.observer import SaveRequest, ShardSaver
from hpcasync.ps.protocol.orders import Kind, Order
from hpcasync.ps.protocol.slots import SlotLedger, Step
from hpcasync.ps.server.apply_group import ShardGroup
from hpcasync.ps.server.compensation import DelayCompensation
from hpcasync.ps.server.host_sums import HostSums
from hpcasync.ps.server.polling import Polling
from hpcasync.ps.server.shard_state import ShardState
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
        self._gradients = ShardGroup(state, link.wire, compensation)
        self._host_sums = HostSums(link, state.parameters.device, state.threads) if link.sums_hosts else None
        assert self._host_sums is None or compensation is None, "a gradient is corrected where its shard is"
        # A gradient that is corrected is read at once: it is corrected for the versions that there are.
        sums_late = link.wire.has_blocks and compensation is None
        self._slots = SlotLedger(link.num_slots, sums_late=sums_late, sums_hosts=link.sums_hosts)
        self._steps = {
            Step.TAKE: self._take,
            Step.FOLD: self._fold,
            Step.APPLY: self._apply,
            Step.CLEAR: self._clear,
            Step.CONSUME: self._consume,
            Step.PUBLISH: self._after_apply,
            Step.EXCHANGE: self._exchange,
            Step.COMPLETE: self._complete,
        }
        self._group: list[Order] = []  # pushes of the group
        self._polling = Polling(link)
        self._publish_initial(version)

    def _publish_initial(self, version: int) -> None:
        self._begin_writing(version).copy_(self._state.parameters)
        self._link.data.sync()
        if self._index == 0:
            self._link.control.store(self._rank, ControlWords.PUBLISHED, version)

    def _execute(self, order: Order, request: SaveRequest | None = None) -> None:
        with self._span(order):
            if request is not None:
                self._save(request)
                return
            if order.kind in (Kind.ACCUMULATE, Kind.DROP):
                self._polling.arrived(order.worker, order.sequence)
            for step in self._slots.steps(order):
                self._steps[step](order)

    def _span(self, order: Order) -> AbstractContextManager[None]:
        if order.kind is Kind.READ:
            return self.timeline.span("read")
        if order.kind is not Kind.APPLY:
            return self.timeline.span(order.kind.name.lower(), worker=order.worker)
        staleness = [(push.worker, order.version - 1 - push.version) for push in self._group]
        return self.timeline.span("apply", version=order.version, staleness=staleness)

    def _take(self, order: Order) -> None:
        self._group.append(order)
        self._link.data.sync()
        if self._host_sums is None or self._host_sums.take(order.worker, order.sequence):
            self._gradients.take(self._link.slot(order.worker, order.sequence), order.num_tokens, order.version)

    def _fold(self, order: Order) -> None:
        self._gradients.fold()
        if self._host_sums is not None:
            self._host_sums.fold()

    def _exchange(self, order: Order) -> None:
        assert self._host_sums is not None
        for gradient in self._host_sums.exchange():
            self._gradients.add(gradient)

    def _read_while_idle(self) -> bool:
        """Read the gradients that wait in their slots, if any: their update will have less to do, and come sooner."""
        if not self._slots.held:
            return False
        self._execute(Order(Kind.READ))
        return True

    def _clear(self, order: Order) -> None:
        self._group.clear()
        self._gradients.clear()
        if self._host_sums is not None:
            self._host_sums.clear()

    def _complete(self, order: Order) -> None:
        self._link.data.sync()

    def _consume(self, order: Order) -> None:
        for worker, sequence in self._slots.consume(order):
            self._link.control.tell_worker(worker, ControlWords.consumed(worker), sequence)

    def _apply(self, order: Order) -> None:
        self._gradients.apply(order, self._clip_norm, self._squared_norm, lambda: self._begin_writing(order.version))
        self._group.clear()

    def _squared_norm(self) -> float:
        """Of the whole gradient."""
        return float(self._link.server_comm.allreduce(self._gradients.squared_norm()))

    def _begin_writing(self, version: int) -> torch.Tensor:
        self._link.begin_writing(version)
        return self._link.own_buffer(version)

    def _after_apply(self, order: Order) -> None:
        """This shard has the version."""
        raise NotImplementedError("the coordinator waits for the others, who tell it")

    def _save(self, request: SaveRequest) -> None:
        if request.checkpoint:
            self._saver.save_shard(request.name, self._index, self._shard, self._state.state_tensors())
        if request.snapshot:
            vector = self._gather(self._state.averaged)
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


def initial_shard(vector: torch.Tensor, shard: Shard, device: torch.device | str = "cpu") -> torch.Tensor:
    """A server's shard of the flat parameter vector: where it lies, if that is on the device, else a copy."""
    return vector[shard.start : shard.stop].detach().to(device)
