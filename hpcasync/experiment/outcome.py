"""What an experiment came to: a table by axes, and the report on its runs."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcasync.errors import UserError, describe
from hpcasync.experiment.plan import MODE, SEED, PlannedRun
from hpcasync.experiment.schema import Experiment
from hpcasync.report.report import Report, make_report
from hpcasync.report.results import Result, time_to
from hpcasync.report.table import MISSING, markdown, result_cells, to_json
from hpcasync.report.write import write_report


@dataclass(frozen=True)
class Table:
    """Titles and rows of text, one row per point of the axes; seeds are summed up."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def collect(experiment: Experiment, runs: Sequence[PlannedRun]) -> Report | None:
    """Read the runs that have records; None if none has.

    Raises:
        UserError: a run directory is damaged.
    """
    paths = [run.config.output_dir for run in runs if (run.config.output_dir / "config.yaml").is_file()]
    if not paths:
        return None
    return make_report(paths, title=experiment.name, thresholds=experiment.thresholds)


def make_table(report: Report, runs: Sequence[PlannedRun]) -> Table:
    """A row for each group of runs: mode, its place on the axes, and what came out."""
    by_path = {run.config.output_dir: run for run in runs}
    axes = _axes(runs)
    titles, rows = result_cells(report.results, report.threshold)
    placed = []
    for result, row in zip(report.results, rows, strict=True):
        coordinates = by_path[result.group.runs[0].path].coordinates
        placed.append((result.group.mode, *(coordinates.get(axis, MISSING) for axis in axes), *row[1:]))
    return Table(("mode", *axes, *titles[1:]), tuple(placed))


def write_outcome(
    experiment: Experiment, report: Report, table: Table, runs: Sequence[PlannedRun], directory: Path
) -> list[Path]:
    """Write results.md, results.json, results.csv and report.html, and return their paths.

    Raises:
        UserError: one of them cannot be written, or a package that the page needs is missing.
    """
    files = {
        "results.md": f"# {experiment.name}\n\n{markdown(table.titles, table.rows)}",
        "results.json": json.dumps({"title": experiment.name, **to_json(report.results)}, indent=1) + "\n",
        "results.csv": _csv(report.results, runs),
    }
    try:
        for name, text in files.items():
            (directory / name).write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {directory / name}: {describe(error, 'name another place')}") from error
    page = directory / "report.html"
    write_report(report, page, "html")  # last: it needs packages that may not be there
    return [page, *(directory / name for name in files)]


def _axes(runs: Sequence[PlannedRun]) -> list[str]:
    """Those beside mode and seed, which have columns anyway."""
    return list(dict.fromkeys(axis for run in runs for axis in run.coordinates if axis not in (SEED, MODE)))


def _csv(results: Sequence[Result], runs: Sequence[PlannedRun]) -> str:
    """A line per run, for other programs."""
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    thresholds = list(results[0].reached) if results else []
    by_path = {run.config.output_dir: run for run in runs}
    axes = _axes(runs)
    writer.writerow(["run", "mode", "seed", *axes, "updates", "target_tokens", "wall_seconds",
                     "target_tokens_per_second", "staleness_mean", "bleu_best", "bleu_final", "bleu_test",
                     *(f"seconds_to_bleu_{threshold:g}" for threshold in thresholds)])  # fmt: skip
    for result in results:
        for run in result.group.runs:
            last = run.summary or (run.updates[-1] if run.updates else {})
            scores = [score["bleu"] for score in run.validations if score["bleu"] is not None]
            tests = [score["bleu"] for score in run.tests if score["bleu"] is not None]
            times = ["" if (t := time_to(threshold, run.validations)) is None else t for threshold in thresholds]
            coordinates = by_path[run.path].coordinates
            writer.writerow([run.path.name, run.mode, run.seed, *(coordinates.get(axis, "") for axis in axes),
                             last.get("num_updates", 0), last.get("target_tokens", 0), last.get("wall_seconds", 0),
                             run.tokens_per_second, run.staleness_mean, max(scores, default=""),
                             scores[-1] if scores else "", tests[-1] if tests else "", *times])  # fmt: skip
    return output.getvalue()
