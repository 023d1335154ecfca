"""The coordinator's sequencing as a pure machine: events in, effects out. No MPI, no clock, no tensors.

It has three drivers: the engine (`ps.server.coordinator`), the simulator (`simulate.coordinator`) and the checker that
walks through every interleaving (`tests/unit/protocol_model`). Each carries effects out in their order, one complete
before the next, and asks between events for what is due (`Coordination.advance`).
"""

from collections.abc import Sequence
from typing import NamedTuple

from hpcasync.ps.protocol.lost_work import Offer
from hpcasync.ps.protocol.lost_workers import LostWorkers
from hpcasync.ps.protocol.orders import Kind, Order
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Arrival, Update, UpdateState


class Apply(NamedTuple):
    """Have all servers make the update (`Order.to_apply`), and wait until all shards have it."""

    update: Update


class Publish(NamedTuple):
    """Workers may pull this version."""

    version: int


class Settled(NamedTuple):
    """Tell the worker that its pushes up to this one are part of the published version, or dropped."""

    worker: int
    sequence: int


class Handled(NamedTuple):
    """Tell the worker that the servers have done what is to be done about its pushes up to this one."""

    worker: int
    sequence: int


class Report(NamedTuple):
    """Tell the program of an update that has been published; it may want to save it, and to stop."""

    update: Update


class Dropped(NamedTuple):
    """Tell the program of a push that is not applied (`Observer.after_drop`)."""

    record: PushRecord
    is_stale: bool


class Finished(NamedTuple):
    """Tell the program that a worker pushes nothing more, or rests."""

    worker: int


class Lost(NamedTuple):
    """Tell the program that a worker has died (`Observer.after_loss`)."""

    worker: int
    is_last: bool


class Exhausted(NamedTuple):
    """Tell everybody that nothing is left to do for anybody: workers finish."""


class Stop(NamedTuple):
    """Tell everybody that training is over, then save what is to be saved of it."""


# An `Order` is for all servers to execute.
Effect = Order | Apply | Publish | Settled | Handled | Report | Dropped | Finished | Lost | Offer | Exhausted | Stop
Effects = Sequence[Effect]


class Coordination:
    """What the coordinator does about what it sees.

    Args:
        updates: which pushes form which update.
        lost: the deaths of workers, where the job goes on without them.
    """

    def __init__(self, updates: UpdateState, lost: LostWorkers | None = None) -> None:
        self.updates = updates
        self.lost = lost

    @property
    def is_finished(self) -> bool:
        """Whether every worker has finished and nothing waits to be applied."""
        # Who rests counts as finished until it is woken.
        return self.updates.is_finished and (self.lost is None or self.lost.work.has_ended)

    def receive(self, worker: int, record: PushRecord) -> Effects:
        """The next push of a worker has been seen."""
        updates = self.updates
        if self.lost is not None:
            self.lost.work.arrived(worker, record.tickets)
        sequence = updates.num_received(worker) + 1
        if updates.receive(Arrival(worker, sequence, record)):
            return (Order(Kind.ACCUMULATE, worker, sequence, record.version, record.num_tokens),)
        return Dropped(record, not updates.is_stopping), Order(Kind.DROP, worker, sequence)

    def look(self, worker: int, *, has_finished: bool, num_rests: int = 0) -> Effects:
        """What a worker has said of itself.

        A worker finishes, or rests, after its last announcement: a driver reads these words first, then how many pushes
        are announced, and has them received before it says so here.
        """
        is_resting = self.lost is not None and self.lost.rests(worker, num_rests)
        if not has_finished and not is_resting:
            return ()
        self.updates.finish(worker)
        if has_finished and self.lost is not None:
            self.lost.work.finished(worker)
        return (Finished(worker),)

    def let_go(self, worker: int, num_drawn: int) -> Effects:
        """A worker has died, and what it had announced has been received. `num_drawn`: batches drawn so far."""
        assert self.lost is not None
        self.lost.let_go(worker, num_drawn)
        self.updates.finish(worker)
        return (Lost(worker, self.lost.is_stuck),)

    def share(self) -> Effects:
        """Offer what dead workers have left undone to the others, and let all finish when nothing is."""
        if self.lost is None or self.updates.is_stopping:
            return ()
        offers = self.lost.work.offers()
        for offer in offers:
            if offer.wakes:
                self.updates.resume(offer.worker)
        return (*offers, Exhausted()) if self.lost.becomes_exhausted() else offers

    def advance(self) -> Effects:
        """Make the update that is due, if any; then let the workers go on that waited for it."""
        updates, effects = self.updates, list[Effect]()
        if updates.should_apply():
            added = updates.tell_added()
            update = updates.apply()
            handled = updates.tell()
            settled = {push.worker: push.sequence for push in update.pushes}
            settled.update(handled)
            effects += [Handled(worker, sequence) for worker, sequence in added]
            effects += Apply(update), Publish(update.version)
            effects += [Settled(worker, sequence) for worker, sequence in settled.items()]
            effects += [Handled(worker, sequence) for worker, sequence in handled]
            effects.append(Report(update))
            return effects
        for worker, sequence in updates.tell():
            # No version will have what was dropped: nobody is to wait for that.
            if updates.is_settled(worker):
                effects.append(Settled(worker, sequence))
            effects.append(Handled(worker, sequence))
        return effects

    def stop(self) -> Effects:
        """Training is over: what is accumulated is dropped."""
        if self.updates.is_stopping:
            return ()
        dropped = (Dropped(push.record, is_stale=False) for push in self.updates.stop())
        return *dropped, Order(Kind.DISCARD), Stop()
