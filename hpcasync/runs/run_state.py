"""Where a run stands, and what an update adds to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcasync.config.schema import RunConfig
from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.ps.protocol.updates import PushCounts
from hpcasync.runs.counters import Counters
from hpcasync.runs.scores import BestScore

# Of a program that tells no loss: no sum of losses comes to it, and no sum with it to anything else but NaN.
UNKNOWN_LOSS = -math.inf


@dataclass(frozen=True)
class UpdateReport:
    """An update as the training program sees it, whatever the mode.

    Attributes:
        num_steps: gradients in the update.
        target_tokens, source_tokens: non-padding tokens in the update.
        loss_sum: negative log likelihood summed over the target tokens, in nats; or UNKNOWN_LOSS.
        tickets: batches in the update.
        staleness: of each gradient, in updates.
    """

    num_steps: int
    target_tokens: int
    source_tokens: int
    loss_sum: float
    tickets: tuple[int, ...]
    staleness: Sequence[int]


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
        """For JSON."""
        tickets = {"low": self.ledger.low, "above": list(self.ledger.above)}
        return {
            "counters": self.counters.to_dict(),
            "tickets": tickets,
            "gradients": self.counts.to_dict(),
        }
