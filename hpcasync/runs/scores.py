"""The best snapshot so far, and for how long there was no better one."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass
class BestScore:
    """The best validation score of a run.

    Attributes:
        higher_is_better: false for a loss.
        name: the best snapshot; empty before the first score.
        value: its score.
        num_stalled: scores since then.
    """

    higher_is_better: bool = True
    name: str = ""
    value: float = 0.0
    num_stalled: int = 0

    def update(self, name: str, value: float) -> bool:
        """Take note of a score; return whether it is the best. One that is not finite never is."""
        is_better = value > self.value if self.higher_is_better else value < self.value
        if not math.isfinite(value) or (self.name and not is_better):
            self.num_stalled += 1
            return False
        self.name, self.value, self.num_stalled = name, value, 0
        return True

    @classmethod
    def of_records(cls, validations: Iterable[dict[str, Any]], metric: str, num_updates: int) -> "BestScore":
        """The best of the validation records of a run up to an update, where the run is resumed.

        A snapshot that was scored again, after an earlier resumption, counts with its last score.
        """
        best = cls(higher_is_better=metric != "loss")
        values = {
            record["name"]: float("nan") if record[metric] is None else record[metric]
            for record in validations
            if record["num_updates"] <= num_updates
        }
        for name in sorted(values):
            best.update(name, values[name])
        return best
