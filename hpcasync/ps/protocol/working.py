"""A worker's sequencing as a pure machine: what it waits for, and when it writes a slot, rests, or takes an offer.

Like `ps.protocol.coordination` it has three drivers: `ps.worker.client`, `simulate.worker` and the tests' checker.
"""

import enum
from typing import NamedTuple

from hpcasync.choices import PullPolicy

# Who computes while its gradient travels has drawn so many batches before that: the next one, and the one that is made
# while that is computed. Between hosts a draw would wait until the gradient has left.
DRAWS_AHEAD = 2


class Count(enum.Enum):
    """What servers tell a worker of its pushes: how many are so far (`ControlWords`)."""

    CONSUMED = "consumed"  # by each server
    HANDLED = "handled"  # by the coordinator
    SETTLED = "settled"  # by the coordinator


class Source(enum.Enum):
    """Where a worker's next batch comes from."""

    CURSOR = "cursor"  # nobody has drawn it yet
    OFFER = "offer"  # a dead worker has left it undone
    NOWHERE = "nowhere"  # there are no more, unless others die
    END = "end"  # training has ended


class Wait(NamedTuple):
    """Wait until a count is there at all servers that tell it; it is over, too, when training has ended."""

    told: Count
    value: int


def before_reuse(push: int, num_places: int) -> Wait:
    """Before anything of a push is written to the one of so many places that is its: pushes have them in turn."""
    return Wait(Count.CONSUMED, push - num_places)


class Working:
    """What a worker has done, and so has to wait for.

    Args:
        num_slots: of its pushes that servers have not read yet, at most.
        pull: what it waits for after a push (exchange.pull).
        may_lose_workers: the job goes on without workers that die: who finds no more batches rests.
        fresh_updates: as long as versions are older, gradients are to be fresh (staleness.fresh_start).
    """

    def __init__(
        self, num_slots: int, pull: PullPolicy, *, may_lose_workers: bool = False, fresh_updates: int = 0
    ) -> None:
        self._num_slots = num_slots
        self._pull = pull
        self._fresh_updates = fresh_updates
        self.may_lose_workers = may_lose_workers
        self.num_pushed = 0
        self.num_taken_offers = 0
        self.num_rests = 0
        self.has_drawn_all = False

    @property
    def next_push(self) -> int:
        """The number of the next push: pushes are numbered from 1."""
        return self.num_pushed + 1

    def before_write(self) -> Wait:
        """Before anything of the next push is written: its slot has to be free."""
        return before_reuse(self.next_push, self._num_slots)

    def after_push(self, version: int) -> Wait | None:
        """After a push computed from `version`, before the next pull.

        Settled is told with handled, or before it, and of dropped pushes too.
        """
        if self._pull == "latest" and self.computes_ahead(version):
            return None
        return Wait(Count.SETTLED if self._pull == "applied" else Count.HANDLED, self.num_pushed)

    def announce(self) -> int:
        """A push is whole; returns its number, which is announced."""
        self.num_pushed += 1
        return self.num_pushed

    def computes_ahead(self, version: int) -> bool:
        """Whether it may compute while a gradient of this version travels, if it ever does so (exchange.overlap)."""
        return version >= self._fresh_updates

    def has_offer(self, num_offers: int) -> bool:
        """Whether a batch is offered to it that it has not taken. The next is offered only when this one is pushed."""
        return num_offers != self.num_taken_offers

    def next_source(self, num_offers: int, *, is_stopping: bool) -> Source:
        """Where its next batch comes from, by the offers made to it so far."""
        if is_stopping:
            return Source.END
        if self.has_offer(num_offers):
            return Source.OFFER
        return Source.NOWHERE if self.has_drawn_all else Source.CURSOR

    def take_offer(self) -> int:
        """It takes what is offered; returns how many it has taken."""
        self.num_taken_offers += 1
        return self.num_taken_offers

    def drew(self, *, has_batch: bool) -> bool:
        """It has drawn, a batch or that there are no more; returns whether it is finished then."""
        self.has_drawn_all = not has_batch
        return self.has_drawn_all and not self.may_lose_workers

    def rest(self) -> int:
        """There is nothing to push or draw: it tells the coordinator how often that was so, and waits for an offer."""
        self.num_rests += 1
        return self.num_rests
