"""Which batches dead workers have left undone, and who does them instead. Pure decisions.

Nobody records who drew which batch. But a worker pushes in the order in which it draws: once every worker that lives
has pushed a batch drawn after the death, or has rested because there were no more, whatever was drawn before the death
and has not arrived is lost with the dead.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from hpcasync.ps.protocol.tickets import TicketLedger, TicketSequence


@dataclass(frozen=True)
class Offer:
    """A lost batch that a worker is to do next. `wakes`: the worker was resting."""

    worker: int
    ticket: int
    wakes: bool


class LostWork:
    """Keeps the batches of an epoch together while workers die.

    A worker that finds no more batches rests, and is woken where one is left to do, until `is_exhausted`.

    Args:
        tickets: the order in which batches are handed out.
        end: the first ticket that is not handed out any more; None: there is none.

    Raises:
        AssertionError: a batch arrives twice.
    """

    def __init__(self, num_workers: int, tickets: TicketSequence, end: int | None) -> None:
        self._tickets = tickets
        self._end = end
        self._arrived = TicketLedger()  # numbers of draws
        self._last = [-1] * num_workers  # highest number that a worker drew itself and pushed
        self._live = set(range(num_workers))
        self._finished: set[int] = set()
        self._resting: set[int] = set()
        self._have_rested: set[int] = set()
        self._cut: int | None = None  # draws before the newest death whose fate is not known yet
        self._lost: deque[int] = deque()
        self._offered: dict[int, int] = {}

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def has_ended(self) -> bool:
        """Whether every worker has finished or died."""
        return self._live <= self._finished

    @property
    def is_exhausted(self) -> bool:
        """Whether there is nothing more to do for anybody: all that live rest, and nothing is lost."""
        is_settled = self._cut is None and not self._lost and not self._offered
        return is_settled and bool(self._live) and self._live <= self._resting

    def arrived(self, worker: int, tickets: Sequence[int]) -> None:
        """A push has arrived that covers these batches: they are done with, whatever becomes of the gradient."""
        numbers = [self._tickets.number(ticket) for ticket in tickets]
        self._arrived.add(numbers)
        for ticket, number in zip(tickets, numbers, strict=True):
            if self._offered.get(worker) == ticket:
                del self._offered[worker]
            else:
                self._last[worker] = max(self._last[worker], number)

    def rests(self, worker: int) -> bool:
        """The worker has found no more batches; whether it rests indeed: not if it has yet to see an offer."""
        self._have_rested.add(worker)
        if worker in self._offered:
            return False
        self._resting.add(worker)
        return True

    def finished(self, worker: int) -> None:
        self._finished.add(worker)
        self._resting.discard(worker)

    def died(self, worker: int, num_drawn: int) -> None:
        """A worker has died, and all that it had announced has arrived. `num_drawn`: draws of all workers so far."""
        self._live.discard(worker)
        self._resting.discard(worker)
        if (ticket := self._offered.pop(worker, None)) is not None:
            self._lost.append(ticket)
        if worker not in self._finished:
            self._cut = num_drawn

    def offers(self) -> list[Offer]:
        """What is to be offered now: one batch to a worker until it has pushed it, first to those who rest."""
        self._settle()
        made = []
        idle = self._live - self._finished - self._offered.keys()
        for worker in sorted(idle, key=lambda worker: (worker not in self._resting, worker)):
            if not self._lost:
                break
            offer = Offer(worker, self._lost.popleft(), worker in self._resting)
            self._resting.discard(worker)
            self._offered[worker] = offer.ticket
            made.append(offer)
        return made

    def _settle(self) -> None:
        cut = self._cut
        if cut is None or not all(w in self._have_rested or self._last[w] >= cut for w in self._live):
            return
        known = {*self._lost, *self._offered.values()}
        drawn = (self._tickets.ticket(number) for number in self._arrived.missing_below(cut))
        is_there = (ticket for ticket in drawn if self._end is None or ticket < self._end)
        self._lost.extend(ticket for ticket in is_there if ticket not in known)
        self._cut = None
