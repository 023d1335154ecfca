"""What a benchmark prints: rows of a value, its limit, their ratio, and whether the goal is met."""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hpcasync import __version__

_NAME_WIDTH = 78


@dataclass(frozen=True)
class Row:
    """A figure beside what bounds it.

    Attributes:
        name: what was measured.
        value: median.
        unit: of `value` and `limit`.
        limit: what the machine, or a peer, does in the same run; None where there is none.
        ratio: value over limit, larger is better (inverted where the unit is a time).
        goal: what `ratio` should reach; None: the value is only printed.
        spread: smallest and largest of the values.
        note: how to read it.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    ratio: float | None = None
    goal: float | None = None
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.goal is None or self.ratio is None else self.ratio >= self.goal


def spread_row(name: str, values: Sequence[float], unit: str, *, note: str = "") -> Row:
    """A row of values without a limit."""
    return Row(name, statistics.median(values), unit, spread=(min(values), max(values)), note=note)


def rate_row(
    name: str, values: Sequence[float], limits: Sequence[float], unit: str, *, goal: float | None = None, note: str = ""
) -> Row:
    """A row of rates (larger is better); the ratio is the median of the ratios of samples taken one after the other."""
    ratio = statistics.median(value / limit for value, limit in zip(values, limits, strict=True))
    spread = min(values), max(values)
    return Row(name, statistics.median(values), unit, statistics.median(limits), ratio, goal, spread, note)


def time_row(
    name: str,
    seconds: Sequence[float],
    limits: Sequence[float],
    *,
    goal: float | None = None,
    unit: str = "ms",
    note: str = "",
) -> Row:
    """A row of times in seconds (smaller is better), shown in `unit`; the ratio is limit over value."""
    factor = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    ratio = statistics.median(limit / value for value, limit in zip(seconds, limits, strict=True))
    value, limit = statistics.median(seconds) * factor, statistics.median(limits) * factor
    return Row(name, value, unit, limit, ratio, goal, (min(seconds) * factor, max(seconds) * factor), note)


def signature() -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "hpcasync": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
    }


def print_rows(rows: Iterable[Row], *, as_json: bool, **about: Any) -> None:
    """Print rows as a table, each as it comes, or all as JSON with the signature; `about` is added to it."""
    sign = signature() | about
    if as_json:
        print(json.dumps({"rows": [asdict(row) | {"met": row.met} for row in rows], "signature": sign}))
        return
    titles = ("value", "spread", "limit", "ratio", "goal")
    print(_line("", *titles), flush=True)
    for row in rows:
        spread = f"{_short(row.spread[0])} to {_short(row.spread[1])}" if row.spread else ""
        limit = "" if row.limit is None else _short(row.limit)
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        goal = "" if row.goal is None else f"{row.goal:.2f}"
        mark = {True: " met", False: " NOT MET", None: ""}[row.met]
        columns = _line(row.name, _short(row.value), spread, limit, ratio, goal)
        print(f"{columns}  {row.unit}{mark}{'; ' + row.note if row.note else ''}", flush=True)
    print(", ".join(f"{key} {value}" for key, value in sign.items()))


def _line(name: str, value: str, spread: str, limit: str, ratio: str, goal: str) -> str:
    return f"{name:{_NAME_WIDTH}}  {value:>10}  {spread:>17}  {limit:>10}  {ratio:>6}  {goal:>5}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
