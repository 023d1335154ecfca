"""The best snapshot so far, and for how long there was no better one."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Of BLEU, chrF and COMET, as they are shown: what differs less is a tie.
_DECIMALS = 2
_NUM_BLIND = 3


@dataclass(frozen=True)
class _Standing:
    """A snapshot among others; the higher is the better: by its score, and where that ties by its loss."""

    name: str = ""
    value: float = 0.0
    rank: tuple[float, float] = (-math.inf, -math.inf)


class BestScore:
    """The best validation score of a run.

    Snapshots that a run has made only because it ended may be the best, but are no validations: they count neither as
    one without improvement nor as what the next has to surpass, so that `stop.patience` is that of a run left in peace.

    Args:
        metric: bleu, chrf, comet or loss.
    """

    def __init__(self, metric: str = "bleu") -> None:
        self._metric = metric
        self._best = _Standing()
        self._best_validation = _Standing()
        self.num_stalled = 0  # validations since the best of them
        self._last = math.nan
        self._num_equal = 1  # validations in a row with the last one's score

    @property
    def name(self) -> str:
        """The best snapshot; empty before the first score."""
        return self._best.name

    @property
    def value(self) -> float:
        return self._best.value

    def update(self, scores: Mapping[str, Any]) -> bool:
        """Take note of a snapshot's scores; return whether it is the best. One that is not finite never is."""
        standing = self._standing(scores)
        is_best = self._is_better(standing, self._best)
        if is_best:
            self._best = standing
        self._num_equal = self._num_equal + 1 if standing.rank[0] == self._last else 1
        self._last = standing.rank[0]
        if scores.get("is_due", True):
            if self._is_better(standing, self._best_validation):
                self._best_validation, self.num_stalled = standing, 0
            else:
                self.num_stalled += 1
        return is_best

    @property
    def is_blind(self) -> bool:
        """Whether the score has just come out the same for the third time in a row, whatever the model has learned."""
        return self._metric != "loss" and self._num_equal == _NUM_BLIND

    @classmethod
    def of_records(cls, validations: Iterable[Mapping[str, Any]], metric: str, num_updates: int) -> "BestScore":
        """The best of the validation records of a run up to an update, where the run is resumed.

        A snapshot that was scored again, after an earlier resumption, counts with its last score.
        """
        best = cls(metric)
        found = {record["name"]: record for record in validations if record["num_updates"] <= num_updates}
        for name in sorted(found):
            best.update(found[name])
        return best

    def _standing(self, scores: Mapping[str, Any]) -> _Standing:
        value, loss = (math.nan if scores[key] is None else scores[key] for key in (self._metric, "loss"))
        of_loss = -loss if math.isfinite(loss) else -math.inf
        rank = (of_loss, 0.0) if self._metric == "loss" else (round(value, _DECIMALS), of_loss)
        return _Standing(scores["name"], value, rank)

    @staticmethod
    def _is_better(standing: _Standing, other: _Standing) -> bool:
        return math.isfinite(standing.value) and (not other.name or standing.rank > other.rank)
