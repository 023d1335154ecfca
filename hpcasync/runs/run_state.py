"""Where a run stands."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from hpcasync.config.schema import RunConfig
from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.ps.protocol.updates import PushCounts
from hpcasync.runs.counters import Counters
from hpcasync.runs.scores import BestScore


@dataclass(frozen=True)
class FreshStart:
    """The first updates of a run, which workers wait for, as in sync.

    Attributes:
        setting: what the configuration says of them.
        updates: how many these were when the run began.
    """

    setting: float | None
    updates: int


@dataclass(frozen=True)
class RunState:
    """Where a run stands: new, or read from a checkpoint.

    Attributes:
        fresh_start: of the ranks that it was begun on; None: they were synchronous, or of an earlier version.
    """

    counters: Counters
    ledger: TicketLedger
    best: BestScore
    counts: PushCounts
    fresh_start: FreshStart | None = None

    @classmethod
    def new(cls, config: RunConfig) -> "RunState":
        """A run that has not begun."""
        return cls(Counters(), TicketLedger(), BestScore(config.validation.metric), PushCounts())

    @classmethod
    def from_dict(cls, state: dict[str, Any], best: BestScore) -> "RunState":
        """The inverse of `to_dict`; scores come later than checkpoints and are not part of them."""
        fresh_start = state.get("fresh_start")
        return cls(
            Counters(**state["counters"]),
            TicketLedger(state["tickets"]["low"], state["tickets"]["above"]),
            best,
            PushCounts.from_dict(state["gradients"]),
            None if fresh_start is None else FreshStart(**fresh_start),
        )

    def with_fresh_start(self, now: FreshStart) -> "RunState":
        """What is over does not begin again with a longer run or other ranks, on which its length depends.

        Args:
            now: what it would be if the run began now.
        """
        before = self.fresh_start
        return self if before is not None and before.setting == now.setting else replace(self, fresh_start=now)

    def to_dict(self) -> dict[str, Any]:
        tickets = {"low": self.ledger.low, "above": list(self.ledger.above)}
        return {
            "counters": self.counters.to_dict(),
            "tickets": tickets,
            "gradients": self.counts.to_dict(),
            "fresh_start": None if self.fresh_start is None else asdict(self.fresh_start),
        }
