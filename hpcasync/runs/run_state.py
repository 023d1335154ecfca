"""Where a run stands."""

from dataclasses import dataclass
from typing import Any

from hpcasync.config.schema import RunConfig
from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.ps.protocol.updates import PushCounts
from hpcasync.runs.counters import Counters
from hpcasync.runs.scores import BestScore


@dataclass(frozen=True)
class RunState:
    """Where a run stands: new, or read from a checkpoint."""

    counters: Counters
    ledger: TicketLedger
    best: BestScore
    counts: PushCounts

    @classmethod
    def new(cls, config: RunConfig) -> "RunState":
        """A run that has not begun."""
        return cls(Counters(), TicketLedger(), BestScore(config.validation.metric), PushCounts())

    @classmethod
    def from_dict(cls, state: dict[str, Any], best: BestScore) -> "RunState":
        """The inverse of `to_dict`; scores come later than checkpoints and are not part of them."""
        return cls(
            Counters(**state["counters"]),
            TicketLedger(state["tickets"]["low"], state["tickets"]["above"]),
            best,
            PushCounts.from_dict(state["gradients"]),
        )

    def to_dict(self) -> dict[str, Any]:
        tickets = {"low": self.ledger.low, "above": list(self.ledger.above)}
        return {
            "counters": self.counters.to_dict(),
            "tickets": tickets,
            "gradients": self.counts.to_dict(),
        }
