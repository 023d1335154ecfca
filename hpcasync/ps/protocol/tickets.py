"""Which batches have been applied and which come next, whatever order the workers finish them in.

A ticket is the position of a batch in the endless sequence of all data epochs. Workers draw numbers 0, 1, 2, … from one
shared cursor; `TicketSequence` turns a drawn number into a ticket.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TicketSequence:
    """The order in which tickets are handed out: first those to do again, then everything from `next_ticket` on.

    Attributes:
        again: tickets that were drawn before a checkpoint and are not part of it, ascending.
        next_ticket: the first ticket that nobody has drawn yet.
    """

    again: tuple[int, ...] = ()
    next_ticket: int = 0

    def ticket(self, number: int) -> int:
        """The ticket for the `number`-th draw."""
        if number < len(self.again):
            return self.again[number]
        return self.next_ticket + number - len(self.again)

    def number(self, ticket: int) -> int:
        """Which draw the ticket is for: the inverse of `ticket`."""
        if ticket < self.next_ticket:
            return bisect_left(self.again, ticket)
        return ticket - self.next_ticket + len(self.again)


class TicketLedger:
    """The set of applied tickets, kept as "all below `low`" plus the few above it.

    Raises:
        AssertionError: a ticket is applied twice.
    """

    def __init__(self, low: int = 0, above: Iterable[int] = ()) -> None:
        self._low = low
        self._above = set(above)

    def add(self, tickets: Iterable[int]) -> None:
        for ticket in tickets:
            assert ticket >= self._low and ticket not in self._above, f"ticket {ticket} was applied twice"
            self._above.add(ticket)
        while self._low in self._above:
            self._above.remove(self._low)
            self._low += 1

    @property
    def low(self) -> int:
        """Every ticket below this one has been applied."""
        return self._low

    @property
    def above(self) -> Sequence[int]:
        """Applied tickets above `low`, ascending."""
        return sorted(self._above)

    def missing_below(self, end: int) -> list[int]:
        """Tickets below `end` that have not been applied, ascending."""
        return [ticket for ticket in range(self._low, end) if ticket not in self._above]

    def remaining(self) -> TicketSequence:
        """What is left to do: the gaps, then everything after the last applied ticket."""
        end = max(self._above, default=self._low - 1) + 1
        return TicketSequence(tuple(self.missing_below(end)), end)
