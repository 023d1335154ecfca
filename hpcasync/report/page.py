"""A report as one page that needs nothing else: plots, tables and timelines with the script that draws them."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpcasync import __version__
from hpcasync.report import figures as plots
from hpcasync.report.palette import group_colours
from hpcasync.report.report import Report
from hpcasync.report.results import BASELINE_MODE, Result
from hpcasync.report.run import Run
from hpcasync.report.spans import Spans, read_timelines
from hpcasync.report.table import TIMES, result_cells, setting_cells, time_cells
from hpcasync.report.timeline_view import pack_timeline
from hpcasync.report.wording import end_words

_SECTIONS = {
    "results": "Results",
    "scores": "BLEU",
    "times": "Time to BLEU",
    "throughput-section": "Throughput",
    "staleness-section": "Staleness",
    "learning": "Learning curves",
    "timeline": "Timeline",
    "configurations": "Configurations",
}


def render_page(report: Report, *, timeline_from: float = 0.0, timeline_to: float | None = None) -> str:
    """The page as HTML.

    Args:
        timeline_from, timeline_to: the seconds of each timeline whose spans are put into the page.

    Raises:
        UserError: a timeline is damaged.
    """
    timelines = {run.path.name: spans for run in report.runs if (spans := read_timelines(run.path))}
    worker_staleness = _worker_staleness(timelines)
    figures = _figures(report)
    for index, (_, histograms) in enumerate(worker_staleness):
        figures[f"worker-staleness-{index}"] = plots.worker_staleness_figure(histograms)
    packed = [pack_timeline(name, ranks, timeline_from, timeline_to) for name, ranks in timelines.items()]
    is_shown = _shown_sections(report, figures.keys()) | {"timeline": bool(packed)}
    page = _template().render(
        title=report.title,
        lead=_lead(report),
        css=_file("page.css"),
        script=_file("page.js"),
        plotly=Markup(get_plotlyjs()),
        figures=_script_json({name: figure.to_plotly_json() for name, figure in figures.items()}),
        timelines=_script_json(packed),
        sections=[(name, text) for name, text in _SECTIONS.items() if is_shown.get(name, True)],
        facts=_facts(report),
        notes=_notes(report),
        results=result_cells(report.results, report.threshold),
        times=time_cells(report.results),
        colours=group_colours(report.groups),
        groups=[group.label for group in report.groups],
        settings=setting_cells(report.groups),
        runs=_run_cells(report.runs),
        configurations=[
            (group.label, yaml.safe_dump(group.runs[0].config, sort_keys=False, allow_unicode=True))
            for group in report.groups
        ],
        worker_staleness=[(f"worker-staleness-{index}", name) for index, (name, _) in enumerate(worker_staleness)],
        is_shown=is_shown,
        drawn=figures.keys(),
        footer=f"Made by hpcasync {__version__}. BLEU as each run recorded it; signatures are in its summary.json.",
    )
    return str(page)


def _figures(report: Report) -> dict[str, Any]:
    figures = {
        **plots.score_figures(report.groups),
        **plots.learning_figures(report.groups),
        **plots.throughput_figures(report.groups),
        "thresholds": plots.threshold_figure(report.results),
        "staleness": plots.staleness_figure(report.groups),
    }
    return {name: figure for name, figure in figures.items() if figure.data}


def _shown_sections(report: Report, drawn: Collection[str]) -> dict[str, bool]:
    """Sections that have nothing to show are left out."""
    has_scores = any(run.validations for run in report.runs)
    return {
        "scores": has_scores,
        "times": has_scores and bool(report.threshold),
        "throughput-section": any(name in drawn for name in ("throughput", "throughput-time")),
        "staleness-section": any(run.staleness_histogram for run in report.runs),
        "learning": any(name in drawn for name in ("loss-train", "loss-valid", "learning-rate")),
    }


def _lead(report: Report) -> str:
    corpora = dict.fromkeys(str(run.config["data"]["path"]) for run in report.runs if "data" in run.config)
    unfinished = sum(result.num_unfinished for result in report.results)
    parts = [f"{_count(len(report.groups), 'configuration')}, {_count(len(report.runs), 'run')}"]
    if corpora:
        parts.append(f"{'corpus' if len(corpora) == 1 else 'corpora'} {', '.join(corpora)}")
    if unfinished:
        parts.append(f"{_count(unfinished, 'run')} not finished")
    return "; ".join(parts) + "."


def _facts(report: Report) -> list[tuple[str, str]]:
    """What one wants to know first."""
    facts = []
    scored = [result for result in report.results if result.best_bleu is not None]
    if scored:
        best = max(scored, key=_best_bleu)
        facts.append((f"{_best_bleu(best):.2f} BLEU", f"best on the validation text: {best.group.label}"))
    ratios = [
        (ratio, result)
        for result in report.results
        if result.group.mode != BASELINE_MODE
        and report.threshold is not None
        and (ratio := result.reached[report.threshold].ratio) is not None
    ]
    if ratios:
        ratio, result = max(ratios, key=lambda pair: pair[0])
        facts.append(
            (f"{ratio:.2f}{TIMES}", f"as fast as {BASELINE_MODE} to BLEU {report.threshold:g}: {result.group.label}")
        )
    fastest = max(report.results, key=_throughput)
    if fastest.tokens_per_second is not None:
        facts.append((f"{_throughput(fastest):,.0f} tokens/s", f"highest throughput: {fastest.group.label}"))
    return facts


def _notes(report: Report) -> list[str]:
    notes = []
    if any(len(group.runs) > 1 for group in report.groups):
        notes.append("Mean ± sample standard deviation over seeds.")
    if any(run.cluster is not None for run in report.runs):
        notes.append("Times of simulated runs are those of the simulated cluster.")
    notes += [
        f"{run.path.name} was resumed with another number of workers: {run.workers_text}. Its times are not those of "
        "one job."
        for run in report.runs
        if len(run.worker_counts) > 1
    ]
    if not any(run.updates for run in report.runs):
        notes.append("No update has been recorded: there are no curves of the training loss or the throughput.")
    if not any(run.validations for run in report.runs):
        notes.append("No snapshot has been scored: `hpcasync evaluate RUN_DIR --all` does it afterwards.")
    if not any(group.mode == BASELINE_MODE for group in report.groups):
        notes.append(f"There is no run of mode {BASELINE_MODE} here to compare times with.")
    return notes


def _run_cells(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    titles = ["directory", "mode", "seed", "servers", "workers", "updates", "target tokens", "ended", "digest"]
    rows = []
    for run in runs:
        last = run.summary or (run.updates[-1] if run.updates else {})
        rows.append(
            [
                str(run.path),
                run.mode,
                str(run.seed),
                str(run.num_servers),
                run.workers_text,
                f"{last.get('num_updates', 0):,}",
                f"{last.get('target_tokens', 0):,}",
                "not yet" if run.summary is None else end_words(str(run.summary.get("stop_reason", ""))),
                "" if run.summary is None else str(run.summary.get("configuration_digest", "")),
            ]
        )
    return titles, rows


def _worker_staleness(timelines: dict[str, list[Spans]]) -> list[tuple[str, dict[int, Counter[int]]]]:
    """Runs whose coordinator recorded the staleness of each worker's pushes."""
    found = []
    for name, ranks in timelines.items():
        histograms = next((spans.staleness for spans in ranks if spans.staleness), None)
        if histograms:
            found.append((name, dict(histograms)))
    return found


def _best_bleu(result: Result) -> float:
    return result.best_bleu.mean if result.best_bleu is not None else float("-inf")


def _throughput(result: Result) -> float:
    return result.tokens_per_second.mean if result.tokens_per_second is not None else float("-inf")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _script_json(content: Any) -> Markup:
    """JSON within a script element, which a closing tag in a name must not end."""
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(content, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return Markup(text.replace("</", "<\\/").replace("<!--", "<\\u0021--"))


def _template() -> Any:
    return Environment(autoescape=True, trim_blocks=True).from_string(str(_file("page.html.j2")))


def _file(name: str) -> Markup:
    return Markup(resources.files("hpcasync.report").joinpath(name).read_text(encoding="utf-8"))
