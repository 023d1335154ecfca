"""Timelines as Chrome's trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcasync.errors import UserError
from hpcasync.report.report import Report
from hpcasync.report.run import Run
from hpcasync.report.spans import ACTIVITIES, NO_DETAIL, Spans, read_timelines

_DETAILS = {"apply": "version", "accumulate": "worker", "drop": "worker"}


def write_trace(report: Report, path: Path, *, begin: float = 0.0, end: float | None = None) -> None:
    """Write the timelines of all runs that have one: a run is a process, a rank is a thread.

    Args:
        begin, end: seconds between which spans are written; no end: to the last.

    Raises:
        UserError: no run has a timeline, or one is damaged.
    """
    found = [(run, ranks) for run in report.runs if (ranks := read_timelines(run.path))]
    if not found:
        names = ", ".join(str(run.path) for run in report.runs)
        raise UserError(f"{names}: there is no timeline to make a trace of; train with logging.timeline=true")
    with path.open("w", encoding="utf-8") as file:
        separator = '{"displayTimeUnit": "ms", "traceEvents": [\n'
        for number, (run, ranks) in enumerate(found):
            for event in _events(run, ranks, number, begin, end):
                file.write(separator + json.dumps(event, separators=(",", ":")))
                separator = ",\n"
        file.write("\n]}\n")


def _events(run: Run, ranks: list[Spans], process: int, begin: float, end: float | None) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": run.path.name}}
    for order, spans in enumerate(ranks):
        thread = {"pid": process, "tid": spans.rank}
        yield {"ph": "M", "name": "thread_name", **thread, "args": {"name": spans.name}}
        yield {"ph": "M", "name": "thread_sort_index", **thread, "args": {"sort_index": order}}
        for start, duration, activity, detail in zip(
            spans.start.tolist(), spans.duration.tolist(), spans.activity.tolist(), spans.detail.tolist(), strict=True
        ):
            if start + duration < begin or (end is not None and start > end):
                continue
            name = ACTIVITIES[activity]
            # In microseconds.
            event = {"ph": "X", "name": name, **thread, "ts": round(start * 1e6, 1), "dur": round(duration * 1e6, 1)}
            yield event if detail == NO_DETAIL else {**event, "args": {_DETAILS.get(name, "detail"): detail}}
