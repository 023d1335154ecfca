"""How far training has come. Different things are counted apart."""

from dataclasses import asdict, dataclass
from typing import Any

from hpcasync.ps.protocol.updates import Update


@dataclass
class Counters:
    """Progress of a run, resumed parts included.

    Attributes:
        num_updates: optimizer steps.
        num_steps: pushes that were applied (in sync: a worker's part of an allreduce).
        num_batches: micro-batches that were applied.
        target_tokens: non-padding target tokens that were applied.
        source_tokens: likewise on the source side.
        wall_seconds: training time, without set-up.
    """

    num_updates: int = 0
    num_steps: int = 0
    num_batches: int = 0
    target_tokens: int = 0
    source_tokens: int = 0
    wall_seconds: float = 0.0

    def add(self, update: Update) -> None:
        self.num_updates += 1
        self.num_steps += len(update.pushes)
        self.num_batches += len(update.tickets)
        self.target_tokens += update.num_tokens
        self.source_tokens += update.num_source_tokens

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
