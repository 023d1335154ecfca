"""A report on runs, whatever it is written as."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcasync.errors import UserError
from hpcasync.report.groups import Group, group_runs
from hpcasync.report.results import Result, default_thresholds, make_results
from hpcasync.report.run import Run, load_run


@dataclass(frozen=True)
class Report:
    """Runs, their groups and what came out.

    Attributes:
        title: for people.
        runs: in the order given.
        groups: of runs that differ in nothing but the seed.
        results: of each group.
        threshold: the BLEU that the main table tells times for; None where no run has scores.
    """

    title: str
    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    results: tuple[Result, ...]
    threshold: float | None


def make_report(paths: Sequence[Path], *, title: str = "", thresholds: Sequence[float] = ()) -> Report:
    """Read run directories and compare them.

    Args:
        title: default: the runs' common name.
        thresholds: BLEU scores to tell times for; default: round ones below the best score.
    """
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise UserError(f"{path} is given twice: name each run directory once")
    runs = [load_run(path) for path in paths]
    groups = group_runs(runs)
    chosen = tuple(sorted(thresholds)) or default_thresholds(runs)
    results = make_results(groups, chosen)
    names = dict.fromkeys(str(run.config["name"]) for run in runs)
    return Report(
        title or f"{', '.join(list(names)[:3])}: {len(runs)} run{'s' if len(runs) > 1 else ''}",
        tuple(runs),
        tuple(groups),
        tuple(results),
        main_threshold(results, chosen),
    )


def main_threshold(results: Sequence[Result], thresholds: Sequence[float]) -> float | None:
    """The highest threshold that all runs of two groups reached; else that any run did; else the lowest."""

    def num_groups(threshold: float) -> int:
        return sum(result.reached[threshold].num_reached == len(result.group.runs) for result in results)

    compared = [threshold for threshold in thresholds if num_groups(threshold) > 1]
    anywhere = [threshold for threshold in thresholds if any(r.reached[threshold].num_reached for r in results)]
    return max(compared or anywhere, default=min(thresholds, default=None))
