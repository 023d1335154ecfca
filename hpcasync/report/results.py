"""What groups of runs came to: scores, throughput, and the time to a score, as mean and spread over seeds."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hpcasync.report.groups import Group
from hpcasync.report.run import Run
from hpcasync.runs.records import Record

BASELINE_MODE = "sync"
_MAX_THRESHOLDS = 8
_FINEST_STEP = 0.5


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (none for a single value) of `number` values."""

    mean: float
    deviation: float | None
    number: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Of the values that there are; None if there is none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def text(self, decimals: int) -> str:
        """`mean ± deviation`."""
        shown = f"{self.mean:,.{decimals}f}"
        return shown if self.deviation is None else f"{shown} ± {self.deviation:,.{decimals}f}"


@dataclass(frozen=True)
class Reached:
    """When the runs of a group reached a score.

    Attributes:
        seconds: training time of the first snapshot that reached it, over the runs that did.
        num_reached: runs that did.
        ratio: time of the fastest synchronous group with the same slow worker, if any, divided by this group's; None
            unless all runs of both did.
    """

    seconds: Spread | None
    num_reached: int
    ratio: float | None


@dataclass(frozen=True)
class Result:
    """A group's line of the table; None where there is nothing to tell.

    Attributes:
        group: whose.
        best_bleu, final_bleu: on the validation text.
        final_loss: likewise, per target token in nats, of the last snapshot that was scored.
        test_bleu: on the test text, of the last snapshot that was scored.
        tokens_per_second: target tokens applied per second of training.
        staleness: mean over gradients, in updates.
        reached: by threshold.
        num_unfinished: runs that have not ended.
    """

    group: Group
    best_bleu: Spread | None
    final_bleu: Spread | None
    final_loss: Spread | None
    test_bleu: Spread | None
    tokens_per_second: Spread | None
    staleness: Spread | None
    reached: dict[float, Reached]
    num_unfinished: int


def make_results(groups: Sequence[Group], thresholds: Sequence[float]) -> list[Result]:
    """The results of all groups."""
    times = {
        threshold: [[time_to(threshold, run.validations) for run in group.runs] for group in groups]
        for threshold in thresholds
    }
    return [
        Result(
            group,
            Spread.of(_best(run) for run in group.runs),
            Spread.of(run.validations[-1]["bleu"] if run.validations else None for run in group.runs),
            Spread.of(run.validations[-1]["loss"] if run.validations else None for run in group.runs),
            Spread.of(run.tests[-1]["bleu"] if run.tests else None for run in group.runs),
            Spread.of(run.tokens_per_second for run in group.runs),
            Spread.of(run.staleness_mean for run in group.runs),
            {
                threshold: _reached(seconds[index], _baseline(group, groups, seconds))
                for threshold, seconds in times.items()
            },
            sum(run.summary is None for run in group.runs),
        )
        for index, group in enumerate(groups)
    ]


def time_to(threshold: float, validations: Sequence[Record]) -> float | None:
    """Training time in seconds of the first snapshot that reached a BLEU; None if none did."""
    return next(
        (float(s["wall_seconds"]) for s in validations if s["bleu"] is not None and s["bleu"] >= threshold), None
    )


def default_thresholds(runs: Sequence[Run]) -> tuple[float, ...]:
    """Round BLEU scores below the best of all runs: the coarsest steps that give three of them, at most eight.

    Of scores that every run reached with the same snapshot, or never did, the highest alone is left: the others would
    tell the same. Below a BLEU of 1 none is told.
    """
    best = max((score for run in runs if (score := _best(run)) is not None), default=0.0)
    for step in (5.0, 2.0, 1.0, 0.5):
        highest = int(best / step)
        if highest >= 3 or (step == _FINEST_STEP and highest * step >= 1):
            round_scores = [step * n for n in range(max(1, highest - _MAX_THRESHOLDS + 1), highest + 1)]
            by_times = {tuple(time_to(score, run.validations) for run in runs): score for score in round_scores}
            return tuple(by_times.values())
    return ()


def _best(run: Run) -> float | None:
    return max((float(score["bleu"]) for score in run.validations if score["bleu"] is not None), default=None)


def _all_known(seconds: Sequence[float | None]) -> list[float]:
    known = [value for value in seconds if value is not None]
    return known if len(known) == len(seconds) else []


def _baseline(group: Group, groups: Sequence[Group], times: Sequence[Sequence[float | None]]) -> float | None:
    """Time of the fastest synchronous group that had to do with the same slow worker as this one."""
    means = (
        statistics.fmean(known)
        for other, seconds in zip(groups, times, strict=True)
        if other.mode == BASELINE_MODE and _straggler(other) == _straggler(group) and (known := _all_known(seconds))
    )
    return min(means, default=None)


def _straggler(group: Group) -> Any:
    straggler = group.runs[0].config.get("straggler") or {}
    return None if straggler.get("worker") is None else straggler


def _reached(seconds: Sequence[float | None], baseline: float | None) -> Reached:
    spread = Spread.of(seconds)
    all_reached = spread is not None and spread.number == len(seconds)
    ratio = None
    if all_reached and spread is not None and baseline is not None and spread.mean > 0:
        ratio = baseline / spread.mean
    return Reached(spread, 0 if spread is None else spread.number, ratio)
