"""Scores as lines of text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hpcasync.nmt.scoring import BleuScore, ComparedScore, Score

_COLUMNS = (
    # title, key, width, decimals (0: an integer with separators)
    ("updates", "num_updates", 10, 0),
    ("target tokens", "target_tokens", 15, 0),
    ("seconds", "wall_seconds", 10, 1),
    ("loss", "loss", 9, 4),
    ("perplexity", "perplexity", 12, 2),
    ("BLEU", "bleu", 8, 2),
    ("chrF", "chrf", 8, 2),
    ("BP", "bleu_brevity_penalty", 7, 3),
    ("ratio", "bleu_length_ratio", 7, 3),
)
_NAME_WIDTH = 12


def score_lines(scores: Sequence[Score]) -> list[str]:
    """One line per score, with its signature, and one more for what BLEU is made of."""
    lines = []
    for score in scores:
        lines.append(f"{score.name:6} {score.value:7.2f}  {score.signature}")
        if isinstance(score, BleuScore):
            lines.append(f"{'':16}{bleu_parts(score.precisions, score.brevity_penalty, score.length_ratio)}")
    return lines


def bleu_parts(precisions: Sequence[float], brevity_penalty: float, length_ratio: float) -> str:
    shown = " / ".join(f"{precision:.1f}" for precision in precisions)
    return f"precisions {shown}, brevity penalty {brevity_penalty:.3f}, length ratio {length_ratio:.3f}"


def comparison_lines(systems: Mapping[str, Sequence[ComparedScore]]) -> list[str]:
    """A block per score with a line per system; the first system is the one that the others are compared with."""
    width = max(map(len, systems))
    lines = []
    for position in range(len(next(iter(systems.values())))):
        first = next(iter(systems.values()))[position]
        lines.append(f"{first.name}  {first.signature}")
        for system, scores in systems.items():
            score = scores[position]
            p_value = "baseline" if score.p_value is None else f"p = {score.p_value:.4f}"
            lines.append(
                f"  {system:{width}}  {score.value:7.2f}  (mean {score.mean:.2f} +- {score.interval:.2f})  {p_value}"
            )
    return [*lines, "Paired bootstrap resampling; p: chance of such a difference to the baseline if there were none."]


_COMET = ("COMET", "comet", 8, 2)


def record_titles(*, has_comet: bool) -> str:
    columns = (*_COLUMNS, _COMET) if has_comet else _COLUMNS
    return f"{'snapshot':{_NAME_WIDTH}}" + "".join(f"{title:>{width}}" for title, _, width, _ in columns)


def record_line(record: Mapping[str, Any]) -> str:
    columns = (*_COLUMNS, _COMET) if "comet" in record else _COLUMNS
    cells = [_cell(record[key], width, decimals) for _, key, width, decimals in columns]
    return f"{record['snapshot']:{_NAME_WIDTH}}" + "".join(cells)


def signature_lines(record: Mapping[str, Any]) -> list[str]:
    """What the scores of a table mean."""
    settings = record["settings"]
    parts = bleu_parts(record["bleu_precisions"], record["bleu_brevity_penalty"], record["bleu_length_ratio"])
    return [
        "",
        f"BLEU  {record['bleu_signature']}",
        f"      {parts}, of the last line",
        f"chrF  {record['chrf_signature']}",
        *([f"COMET {record['comet_signature']}, times 100"] if "comet" in record else []),
        f"beam {settings['beam']}, length penalty {settings['length_penalty']}, {record['num_sentences']} sentences; "
        "loss in nats per target token; seconds of training",
    ]


def _cell(value: float | None, width: int, decimals: int) -> str:
    if value is None or not math.isfinite(value):
        return f"{'-':>{width}}"
    return f"{value:>{width},}" if decimals == 0 else f"{value:>{width}.{decimals}f}"
