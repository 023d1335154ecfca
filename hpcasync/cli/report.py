"""`hpcasync report`: runs side by side, as a page, a table or a picture."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcasync.cli.parameters import FILE, Number
from hpcasync.errors import UserError

if TYPE_CHECKING:
    from hpcasync.report.write import Format

_STDOUT = Path("/dev/stdout")
_FORMATS: "tuple[Format, ...]" = ("html", "md", "json", "png", "trace")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN_DIR...", type=FILE)
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="File to write; default: report.html, or standard output for md, json; -: standard output.",
)
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Default: by the ending of the file, else html.")
@click.option("--title", default="", help="Of the report; default: the runs' names.")
@click.option("--thresholds", default="", metavar="BLEU,...", help="Scores to tell times for; default: round ones.")
@click.option("--timeline-from", default=0.0, type=Number(min=0), metavar="SECONDS",
              help="First second of the timelines that goes into the page or trace.")  # fmt: skip
@click.option("--timeline-to", type=Number(min=0), metavar="SECONDS", help="The last one.")
def report(
    runs: tuple[Path, ...],
    output: Path | None,
    form: "Format | None",
    title: str,
    thresholds: str,
    timeline_from: float,
    timeline_to: float | None,
) -> None:
    """Compare runs: BLEU over time and tokens, time to BLEU, throughput, staleness, timelines, settings that differ.

    Runs that differ in nothing but their seed count as one configuration, told as mean and spread. Runs that have not
    ended are shown as far as they are. html is one page that opens offline; for a timeline in it, train with
    logging.timeline=true. trace is the timelines alone, for ui.perfetto.dev or chrome://tracing.
    """
    is_stream = str(output) == "-"
    chosen = form or ("md" if is_stream else _form_of(output))
    if timeline_to is not None and timeline_to <= timeline_from:
        raise UserError(f"--timeline-to {timeline_to:g} is not later than --timeline-from {timeline_from:g}")
    from hpcasync.report.report import make_report
    from hpcasync.report.write import as_json, as_markdown, write_report

    made = make_report(runs, title=title, thresholds=_parse_thresholds(thresholds))
    if (output is None or is_stream) and chosen in ("md", "json"):
        click.echo(as_markdown(made) if chosen == "md" else as_json(made), nl=False)
        return
    path = _STDOUT if is_stream else output or Path("trace.json" if chosen == "trace" else f"report.{chosen}")
    write_report(made, path, chosen, timeline_from=timeline_from, timeline_to=timeline_to)
    if not is_stream:
        click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def _form_of(output: Path | None) -> "Format":
    if output is None:
        return "html"
    for form in _FORMATS:
        if output.suffix == f".{form}":
            return form
    raise UserError(f"--output {output}: cannot tell the format from its ending; add --format {'|'.join(_FORMATS)}")


def _parse_thresholds(text: str) -> tuple[float, ...]:
    try:
        thresholds = tuple(float(part) for part in text.split(",") if part)
        if not all(map(math.isfinite, thresholds)):
            raise ValueError("not finite")
        return thresholds
    except ValueError as error:
        raise UserError(
            f"--thresholds {text}: give BLEU scores with commas between them, for example 20,25,30"
        ) from error
