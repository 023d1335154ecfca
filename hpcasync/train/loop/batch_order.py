"""Which batch comes next: tickets of a run, as far as its epochs go."""

from dataclasses import dataclass
from typing import Protocol

from hpcasync.ps.protocol.tickets import TicketSequence


class Plan(Protocol):
    """How batches make up data epochs."""

    def locate(self, ticket: int) -> tuple[int, int]:
        """The data epoch of a ticket, and which of its batches it is."""


class TicketOrder(Protocol):
    """What the numbers that workers draw stand for."""

    def ticket(self, number: int) -> int | None:
        """The ticket of the `number`-th draw; None where there are no more."""


@dataclass(frozen=True)
class BatchOrder:
    """The order in which a run's batches are handed out.

    Attributes:
        num_epochs: passes over the corpus after which there are no more batches; 0: endless.
    """

    tickets: TicketSequence
    plan: Plan
    num_epochs: int

    def ticket(self, number: int) -> int | None:
        ticket = self.tickets.ticket(number)
        is_over = self.num_epochs and self.plan.locate(ticket)[0] >= self.num_epochs
        return None if is_over else ticket
