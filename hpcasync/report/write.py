"""Writing a report in one of its formats."""

import json
from pathlib import Path
from typing import Literal

from hpcasync.command_line import pip_install
from hpcasync.errors import UserError, describe
from hpcasync.report.report import Report
from hpcasync.report.table import markdown, result_cells, setting_cells, time_cells, to_json

Format = Literal["html", "md", "json", "png", "trace"]


def as_markdown(report: Report) -> str:
    """Tables of results, times to scores, and settings that differ."""
    parts = [f"# {report.title}\n", markdown(*result_cells(report.results, report.threshold))]
    times = time_cells(report.results)
    if len(times[0]) > 1:
        parts += ["## Time to BLEU\n", markdown(*times)]
    settings = setting_cells(report.groups)
    if settings[1]:
        parts += ["## Settings that differ\n", markdown(*settings)]
    return "\n".join(parts)


def as_json(report: Report) -> str:
    return json.dumps({"title": report.title, **to_json(report.results)}, indent=1) + "\n"


def write_report(
    report: Report, path: Path, form: Format, *, timeline_from: float = 0.0, timeline_to: float | None = None
) -> None:
    """Write a file.

    Args:
        form: what to write it as.
        timeline_from, timeline_to: as in `page.render_page`; html and trace only.

    Raises:
        UserError: a package of the extra `report` is missing, the file cannot be written, or no run has a timeline for
            a trace.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if form == "html":
            from hpcasync.report.page import render_page

            page = render_page(report, timeline_from=timeline_from, timeline_to=timeline_to)
            path.write_text(page, encoding="utf-8")
        elif form == "png":
            from hpcasync.report.image import write_image

            write_image(report, path)
        elif form == "trace":
            from hpcasync.report.trace import write_trace

            write_trace(report, path, begin=timeline_from, end=timeline_to)
        else:
            path.write_text(as_markdown(report) if form == "md" else as_json(report), encoding="utf-8")
    except ImportError as error:
        raise UserError(
            f"a report as {form} needs {error.name}, which is not installed: {pip_install('hpcasync[report]')}; "
            "or take --format md"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {describe(error, 'name another place')}") from error
