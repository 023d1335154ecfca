"""The table of results: as cells of text, as Markdown and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpcasync.report.groups import Group, differing_keys, setting
from hpcasync.report.results import BASELINE_MODE, Reached, Result, Spread

MISSING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"


def result_cells(results: Sequence[Result], threshold: float | None) -> tuple[list[str], list[list[str]]]:
    """Titles and rows; `threshold` is the BLEU that times are told for."""
    titles = ["run", "seeds", "BLEU best", "BLEU final", "BLEU test", "loss", "target tokens/s", "staleness"]
    has_test = any(result.test_bleu is not None for result in results)
    if threshold is not None:
        titles += [f"time to BLEU {threshold:g}", f"{TIMES} {BASELINE_MODE}"]
    rows = []
    for result in results:
        group = result.group
        row = [
            group.label,
            _seeds(result),
            _text(result.best_bleu, 2),
            _text(result.final_bleu, 2),
            _text(result.test_bleu, 2),
            _text(result.final_loss, 3),
            _text(result.tokens_per_second, 0),
            _text(result.staleness, 2),
        ]
        if threshold is not None:
            reached = result.reached[threshold]
            row += [reached_text(reached, len(group.runs)), ratio_text(reached)]
        rows.append(row)
    if not has_test:
        titles, rows = _without(titles, rows, titles.index("BLEU test"))
    return titles, rows


def time_cells(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of time to each threshold with the ratio to the baseline."""
    thresholds = list(results[0].reached) if results else []
    rows = []
    for result in results:
        row = [result.group.label]
        for threshold in thresholds:
            reached = result.reached[threshold]
            ratio = "" if reached.ratio is None else f" ({reached.ratio:.2f}{TIMES})"
            row.append(reached_text(reached, len(result.group.runs)) + ratio)
        rows.append(row)
    return ["run", *(f"BLEU {threshold:g}" for threshold in thresholds)], rows


def setting_cells(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the settings in which groups differ."""
    firsts = [group.runs[0] for group in groups]
    keys = differing_keys(firsts)
    return ["key", *(group.label for group in groups)], [[key, *(setting(run, key) for run in firsts)] for key in keys]


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    align = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, align, *rows)) + "\n"


def to_json(results: Sequence[Result]) -> dict[str, Any]:
    """Everything that the tables hold, unrounded."""
    return {"groups": [_result_dict(result) for result in results]}


def reached_text(reached: Reached, num_runs: int) -> str:
    """A time with its unit, or how many of the runs got there."""
    if reached.seconds is None:
        return "not reached"
    text = _duration(reached.seconds)
    return text if reached.num_reached == num_runs else f"{text} ({reached.num_reached} of {num_runs})"


def ratio_text(reached: Reached) -> str:
    """How many times as fast as the baseline."""
    return MISSING if reached.ratio is None else f"{reached.ratio:.2f}"


def _without(titles: list[str], rows: list[list[str]], column: int) -> tuple[list[str], list[list[str]]]:
    return titles[:column] + titles[column + 1 :], [row[:column] + row[column + 1 :] for row in rows]


def _duration(seconds: Spread) -> str:
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds.mean >= 2 * length:
            deviation = None if seconds.deviation is None else seconds.deviation / length
            spread = Spread(seconds.mean / length, deviation, seconds.number)
            return f"{spread.text(2 if spread.mean < 10 else 1)} {unit}"
    return f"{seconds.text(0 if seconds.mean >= 10 else 1)} s"


def _seeds(result: Result) -> str:
    seeds = ", ".join(str(run.seed) for run in result.group.runs)
    return seeds if not result.num_unfinished else f"{seeds} ({result.num_unfinished} unfinished)"


def _text(spread: Spread | None, decimals: int) -> str:
    return MISSING if spread is None else spread.text(decimals)


def _result_dict(result: Result) -> dict[str, Any]:
    group = result.group
    return {
        "label": group.label,
        "mode": group.mode,
        "runs": [{"path": str(run.path), "seed": run.seed, "finished": run.summary is not None} for run in group.runs],
        "bleu_best": _spread_dict(result.best_bleu),
        "bleu_final": _spread_dict(result.final_bleu),
        "loss_final": _spread_dict(result.final_loss),
        "bleu_test": _spread_dict(result.test_bleu),
        "target_tokens_per_second": _spread_dict(result.tokens_per_second),
        "staleness": _spread_dict(result.staleness),
        "time_to_bleu": [
            {
                "bleu": threshold,
                "seconds": _spread_dict(reached.seconds),
                "num_reached": reached.num_reached,
                "ratio_to_sync": reached.ratio,
            }
            for threshold, reached in result.reached.items()
        ],
    }


def _spread_dict(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else asdict(spread)
