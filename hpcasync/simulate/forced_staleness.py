"""Staleness by decree, to tell its effect on learning from everything else that asynchrony changes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ForcedStaleness:
    """In synchronous training, every gradient is computed from the version of some updates ago.

    Attributes:
        most: updates that gradients are behind.
        warmup: updates over which the delay grows linearly from 0 to `most`; 0: from the start.
    """

    most: int = 0
    warmup: int = 0

    def at(self, version: int) -> int:
        """The delay, in updates, of gradients for the update after `version`."""
        if version >= self.warmup:
            return self.most
        return self.most * version // self.warmup
