"""When a server reads the gradients of a group, and gives their slots back: pure decisions, the same on all servers."""

import enum
from collections.abc import Sequence

from hpcasync.ps.protocol.orders import Kind, Order


class Step(enum.IntEnum):
    """A part of executing an order."""

    TAKE = 0  # the gradient of the push joins the group; it may stay in its slot
    FOLD = 1  # read all gradients that lie in their slots still
    APPLY = 2  # make the update of this shard; reads them, too
    CLEAR = 3  # forget the group
    CONSUME = 4  # give back the slots that have been read: their workers may use them again
    PUBLISH = 5  # this shard has the version
    EXCHANGE = 6  # this host's sums leave, and those of others join the group (`ps.protocol.host_group`)
    COMPLETE = 7  # wait until all of this has happened: a GPU has only been asked for it


_NOW = (Step.TAKE, Step.FOLD, Step.COMPLETE, Step.CONSUME)
_LATE = (Step.TAKE,)
_STEPS = {
    # A slot that is given back gives back those before it: they are read first.
    Kind.DROP: (Step.FOLD, Step.COMPLETE, Step.CONSUME),
    Kind.APPLY: (Step.APPLY, Step.COMPLETE, Step.CONSUME, Step.PUBLISH),
    Kind.READ: (Step.FOLD, Step.COMPLETE, Step.CONSUME),
    Kind.DISCARD: (Step.CLEAR, Step.CONSUME),  # what was read has been given back already
}


class SlotLedger:
    """Pushes of the group whose slots have not been given back.

    A gradient is read by the update that applies it, unless its worker needs the slot, or the server is idle, before
    that.

    Args:
        num_slots: pushes of a worker that not all servers have read yet, at most.
        sums_late: gradients can be read as late as that; else each is read when it is taken.
        sums_hosts: a host's gradients are summed there before they leave it.

    Attributes:
        held: (worker, sequence) of these pushes, in order.
    """

    def __init__(self, num_slots: int, *, sums_late: bool, sums_hosts: bool = False) -> None:
        self._num_slots = num_slots
        self._sums_late = sums_late
        self._sums_hosts = sums_hosts
        self.held: list[tuple[int, int]] = []

    def steps(self, order: Order) -> Sequence[Step]:
        """How an order that concerns the group is executed."""
        if order.kind is Kind.APPLY and self._sums_hosts:
            return Step.EXCHANGE, *_STEPS[order.kind]
        if order.kind is not Kind.ACCUMULATE:
            return _STEPS[order.kind]
        self.held.append((order.worker, order.sequence))
        num_taken = sum(worker == order.worker for worker, _ in self.held)
        return _LATE if self._sums_late and num_taken < self._num_slots else _NOW

    def consume(self, order: Order) -> list[tuple[int, int]]:
        """Pushes (worker, sequence) whose slots are given back by an order, in this order."""
        given, self.held = self.held, []
        if order.kind is Kind.DROP:
            given.append((order.worker, order.sequence))
        return given
