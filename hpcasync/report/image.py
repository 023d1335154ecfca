"""A report as one picture, for where a page cannot go."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hpcasync.report.palette import ACTIVITY_COLOURS, group_colours
from hpcasync.report.report import Report
from hpcasync.report.results import Result
from hpcasync.report.run import Run
from hpcasync.report.spans import ACTIVITIES, Spans, read_timelines
from hpcasync.runs.records import Record

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b9b3aa",
    "axes.labelcolor": "#2b2a28",
    "axes.grid": True,
    "grid.color": "#e7e3dd",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": "#6f6a62",
    "ytick.color": "#6f6a62",
    "legend.frameon": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}
_TIMELINE_SECONDS = 5.0


def write_image(report: Report, path: Path) -> None:
    """Write the plots of a report as PNG: scores, loss, throughput, staleness, and a few seconds of a timeline."""
    timeline = next(((run, ranks) for run in report.runs if (ranks := read_timelines(run.path))), None)
    with matplotlib.rc_context(_STYLE):
        num_ranks = len(timeline[1]) if timeline else 0
        timeline_height = 0.9 + 0.22 * num_ranks if timeline else 0.0
        figure = Figure(figsize=(11, 10.5 + timeline_height), dpi=150, layout="constrained", facecolor="white")
        figure.suptitle(report.title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        heights = [1.0, 1.0, 1.0] + ([timeline_height / 3.3] if timeline else [])
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
        axes = [figure.add_subplot(grid[row, column]) for row in range(3) for column in range(2)]
        _draw_curves(report, axes)
        _draw_thresholds(report.results, axes[2])
        _draw_bars(report, axes[4], axes[5])
        for plot in axes:
            if not plot.has_data():
                plot.text(0.5, 0.5, "nothing recorded", ha="center", va="center", transform=plot.transAxes)
        if timeline:
            _draw_timeline(figure.add_subplot(grid[3, :]), *timeline)
        handles = [
            Patch(color=colour, label=group.label)
            for group, colour in zip(report.groups, group_colours(report.groups), strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2)
        figure.savefig(path)


def _draw_curves(report: Report, axes: Sequence[Axes]) -> None:
    def minutes(record: Record) -> float:
        return float(record["wall_seconds"]) / 60

    def tokens(record: Record) -> float:
        return float(record["target_tokens"]) / 1e6

    _curves(report, axes[0], lambda run: run.validations, minutes, "bleu")
    _name(axes[0], "BLEU over training time", "training time (min)", "BLEU (validation)")
    _curves(report, axes[1], lambda run: run.validations, tokens, "bleu")
    _name(axes[1], "BLEU over target tokens", "target tokens (million)", "BLEU (validation)")
    _curves(report, axes[3], lambda run: run.updates, tokens, "loss")
    _name(axes[3], "Training loss", "target tokens (million)", "nats per token")


def _curves(
    report: Report, axis: Axes, records: Callable[[Run], Sequence[Record]], x: Callable[[Record], float], key: str
) -> None:
    for group, colour in zip(report.groups, group_colours(report.groups), strict=True):
        for run in group.runs:
            points = [record for record in records(run) if record.get(key) is not None]
            axis.plot([x(p) for p in points], [p[key] for p in points], color=colour, linewidth=1.5)


def _draw_thresholds(results: Sequence[Result], axis: Axes) -> None:
    for result, colour in zip(results, group_colours([result.group for result in results]), strict=True):
        points = [(bleu, reached.seconds.mean / 60) for bleu, reached in result.reached.items() if reached.seconds]
        axis.plot([bleu for bleu, _ in points], [time for _, time in points], "o-", color=colour, markersize=4)
    axis.set_ylim(bottom=0)
    if not any(reached.seconds for result in results for reached in result.reached.values()):
        axis.text(0.5, 0.5, "no score to tell times for", transform=axis.transAxes, ha="center", color="#6f6a62")
    _name(axis, "Time to BLEU", "BLEU (validation)", "training time (min)")


def _draw_bars(report: Report, throughput: Axes, staleness: Axes) -> None:
    colours = group_colours(report.groups)
    for index, (result, colour) in enumerate(zip(report.results, colours, strict=True)):
        if result.tokens_per_second is not None:
            throughput.bar(index, result.tokens_per_second.mean, color=colour, width=0.6)
        counts = np.zeros(0)
        for run in result.group.runs:
            histogram = run.staleness_histogram
            here = np.bincount(list(histogram), weights=list(histogram.values())) if histogram else np.zeros(0)
            counts = np.pad(counts, (0, max(0, len(here) - len(counts))))
            counts[: len(here)] += here
        if counts.sum():
            width = 0.8 / len(colours)
            offset = (index - (len(colours) - 1) / 2) * width
            staleness.bar(np.arange(len(counts)) + offset, counts / counts.sum(), width, color=colour)
    throughput.set_xticks([])
    staleness.xaxis.set_major_locator(MaxNLocator(integer=True))
    staleness.yaxis.set_major_formatter(PercentFormatter(1.0))
    _name(throughput, "Throughput", "", "target tokens per second")
    _name(staleness, "Staleness", "updates", "share of gradients")


def _draw_timeline(axis: Axes, run: Run, ranks: Sequence[Spans]) -> None:
    begin = max(0.0, max(spans.end for spans in ranks) / 2 - _TIMELINE_SECONDS / 2)
    end = begin + _TIMELINE_SECONDS
    seen: set[int] = set()
    for row, spans in enumerate(ranks):
        here = (spans.start + spans.duration > begin) & (spans.start < end)
        for index in np.unique(spans.activity[here]):
            chosen = here & (spans.activity == index)
            bars = list(zip(spans.start[chosen], spans.duration[chosen], strict=True))
            axis.broken_barh(bars, (row - 0.32, 0.64), facecolors=ACTIVITY_COLOURS[ACTIVITIES[index]])
            seen.add(int(index))
    axis.set_xlim(begin, end)
    axis.set_ylim(len(ranks) - 0.5, -0.5)
    axis.set_yticks(range(len(ranks)), [spans.name for spans in ranks])
    axis.grid(axis="y", visible=False)
    axis.legend(
        handles=[Patch(color=ACTIVITY_COLOURS[ACTIVITIES[index]], label=ACTIVITIES[index]) for index in sorted(seen)],
        ncols=len(seen), loc="lower right", bbox_to_anchor=(1, 1),
    )  # fmt: skip
    _name(axis, f"Timeline of {run.path.name}", "seconds since the first span", "")


def _name(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
