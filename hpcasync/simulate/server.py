"""One server of a simulated cluster: its shard, with the real sum, optimizer, formats and compensation."""

from collections.abc import Callable, Sequence

import torch

from hpcasync.comm.shards import Shard
from hpcasync.config.schema import Config
from hpcasync.ps.protocol.host_group import HostGroup
from hpcasync.ps.protocol.orders import Order
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.server.apply_group import ShardGroup
from hpcasync.ps.server.compensation import DelayCompensation
from hpcasync.ps.server.group_sum import GroupSum
from hpcasync.ps.server.parameter_groups import Optimizers
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.transport.gradient_formats import SlotAddress, TopKWire, Wire, make_wire


class SimulatedServer:
    """A server without windows. In sync it holds the whole vector and stands for all workers.

    Args:
        vector: [num_elements] float32 initial parameters.
        sources: for each worker, the server that sums its gradients for this one; None: it takes them itself.
    """

    def __init__(
        self,
        config: Config,
        vector: torch.Tensor,
        shard: Shard,
        optimizers: Optimizers,
        sources: Sequence[int | None],
    ) -> None:
        is_sync = config.mode == "sync"
        optimizer, exchange, staleness = config.optimizer, config.exchange, config.staleness
        self.shard = shard
        self._num_elements = vector.numel()
        self.state = ShardState(
            vector[shard.start : shard.stop].clone(), optimizers, start=shard.start, ema_decay=optimizer.ema_decay
        )
        self._sources = sources
        self._hosts = HostGroup(sources)
        # As in `ps.transport.link`: sums of hosts are rounded, not what is summed.
        self._sum_dtype = torch.bfloat16 if exchange.gradients == "bf16" else torch.float32
        gradients = "fp32" if is_sync or any(source is not None for source in sources) else exchange.gradients
        # Each worker has a wire of its own, which may keep a residual.
        self._wires: list[Wire] = [make_wire(gradients, exchange.topk) for _ in sources]
        self._slot = _Slot(self._wires[0].slot_bytes(shard.size))
        self._rounds_parameters = not is_sync and exchange.parameters == "bf16"
        # What workers get, where it is not the parameters themselves.
        self._ahead: torch.Tensor | None = None
        if not is_sync and staleness.lookahead:
            self._ahead = self.state.parameters.clone()
        self._compensation: DelayCompensation | None = None
        if not is_sync and staleness.compensation and staleness.limit is not None:
            self._compensation = DelayCompensation(staleness.compensation, staleness.limit, self.state.parameters, 0)
        self._group = ShardGroup(self.state, self._wires[0], self._compensation)
        self._sums = {source: GroupSum(shard.size, self._wires[0]) for source in set(sources) if source is not None}
        self.squared_norm = self._group.squared_norm

    def published(self) -> torch.Tensor:
        """A copy of the parameters as workers get them, [size] float32."""
        parameters = self.state.parameters.detach() if self._ahead is None else self._ahead
        return parameters.to(torch.bfloat16).float() if self._rounds_parameters else parameters.clone()

    def write(self, worker: int, gradient: torch.Tensor) -> None:
        """Put this shard of a [num_elements] float32 gradient into the slot, in its format."""
        address = SlotAddress(self._slot, 0, 0)  # type: ignore[arg-type]
        self._wires[worker].write(address, gradient, self.shard)

    def accumulate(self, worker: int, record: PushRecord) -> None:
        """Add what is in the slot to the sum of the group, or to that of the worker's host."""
        source = self._sources[worker]
        if self._hosts.take(worker):
            self._group.take(self._slot.bytes, record.num_tokens, record.version)
            self._group.fold()  # the slot is for the next one
        elif source is not None:
            self._sums[source].add_slot(self._slot.bytes)
            self._sums[source].fold()

    def exchange(self) -> None:
        """Add the other hosts' sums to the group's."""
        for source in self._hosts.exchange().sources:
            self._group.add(self._sums[source].whole().to(self._sum_dtype))
            self._sums[source].clear()

    def discard(self) -> None:
        """Forget the group."""
        self._group.clear()
        self._hosts.clear()
        for total in self._sums.values():
            total.clear()

    def memory(self) -> dict[str, torch.Tensor]:
        """Copies of what it remembers of earlier gradients and versions, beside its state; [size] each."""
        tensors = {}
        for worker, wire in enumerate(self._wires):
            if isinstance(wire, TopKWire) and wire.residual is not None:
                tensors[f"residual.{worker}"] = wire.residual[self.shard.start : self.shard.stop].clone()
        if self._ahead is not None:
            tensors["ahead"] = self._ahead.clone()
        if self._compensation is not None:
            for row, parameters in enumerate(self._compensation.versions):
                tensors[f"compensation.{row}"] = parameters.clone()
        return tensors

    def load(self, state: dict[str, torch.Tensor], memory: dict[str, torch.Tensor]) -> None:
        """Go on from the tensors of the shard's state and those of `memory`."""
        self.state.load_state_tensors(state)
        for worker, wire in enumerate(self._wires):
            if isinstance(wire, TopKWire) and f"residual.{worker}" in memory:
                wire.residual = torch.zeros(self._num_elements, dtype=torch.float32)
                wire.residual[self.shard.start : self.shard.stop] = memory[f"residual.{worker}"]
        if self._ahead is not None:
            self._ahead.copy_(memory["ahead"])
        if self._compensation is not None:
            for row, parameters in enumerate(self._compensation.versions):
                parameters.copy_(memory[f"compensation.{row}"])

    def apply(self, order: Order, clip_norm: float, squared_norm: Callable[[], float]) -> None:
        """Make the optimizer step and begin a new group."""
        self._group.apply(order, clip_norm, squared_norm, lambda: self._ahead)


class _Slot:
    """The memory of one push slot, with what a `gradient_formats.Wire` needs of `comm.windows.DataWindow`."""

    def __init__(self, num_bytes: int) -> None:
        self.bytes = torch.zeros(num_bytes, dtype=torch.uint8)

    def is_local(self, rank: int) -> bool:
        return True

    def write(self, rank: int, offset: int, values: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        dtype = values.dtype if dtype is None else dtype
        self.bytes[offset : offset + values.numel() * dtype.itemsize].view(dtype).copy_(values)
