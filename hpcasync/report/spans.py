"""Timelines of the ranks of a run (`hpcasync/timeline.py` writes them), on one time axis."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcasync import timeline

# The order in which they are named and coloured; the last stands for all that have no name here.
ACTIVITIES = ("compute", "push", "wait", "pull", "allreduce", "accumulate", "read", "apply", "save", "drop", "other")
_INDICES = {name: index for index, name in enumerate(ACTIVITIES)}
NO_DETAIL = -1


@dataclass(frozen=True)
class Spans:
    """The spans of one rank, by start.

    Attributes:
        rank: world rank.
        name: for people, "worker 0 · rank 1 · node1".
        is_server: else a worker.
        start: [n] float64, seconds since the first span of any rank.
        duration: [n] float64, seconds.
        activity: [n] uint8, index into ACTIVITIES.
        detail: [n] int32, the version of an apply or the worker of an accumulate; NO_DETAIL for others.
        staleness: of the pushes that the rank applied, {worker_index: {staleness in updates: pushes}}; the coordinator
            alone has it.
    """

    rank: int
    name: str
    is_server: bool
    start: np.ndarray
    duration: np.ndarray
    activity: np.ndarray
    detail: np.ndarray
    staleness: dict[int, Counter[int]]

    @property
    def end(self) -> float:
        """When the last span ended, in seconds."""
        return float((self.start + self.duration).max()) if len(self.start) else 0.0


def read_timelines(run_dir: Path) -> list[Spans]:
    """All ranks' spans, servers first; none where the run recorded no timeline (logging.timeline).

    Raises:
        UserError: a file is damaged other than in its last line.
    """
    read = [_RankFile(values) for values in timeline.read_timelines(run_dir)]
    ranks = [rank for rank in read if rank.starts]
    if not ranks:
        return []
    origin = min(rank.starts[0] for rank in ranks)
    ranks.sort(key=lambda rank: (rank.facts["role"] != "server", rank.facts["index"]))
    return [rank.spans(origin) for rank in ranks]


def activity_shares(spans: Spans, edges: np.ndarray) -> np.ndarray:
    """Share of time in each activity, per bin.

    Args:
        edges: [bins + 1] ascending bin edges in seconds.

    Returns:
        [activities, bins] float64 in [0, 1]; what is left to 1 is time outside all spans.
    """
    shares = np.zeros((len(ACTIVITIES), len(edges) - 1))
    for index in range(len(ACTIVITIES)):
        chosen = spans.activity == index
        start, duration = spans.start[chosen], spans.duration[chosen]
        if not len(start):
            continue
        # Time spent up to an instant, linear within spans, which do not overlap; its differences are time per bin.
        instants = np.column_stack([start, start + duration]).ravel()
        spent = np.column_stack([np.cumsum(duration) - duration, np.cumsum(duration)]).ravel()
        shares[index] = np.diff(np.interp(edges, instants, spent)) / np.diff(edges)
    return shares


def totals(spans: Spans, seconds: float) -> dict[str, float]:
    """Share of `seconds` that went into each activity that occurred."""
    sums = np.bincount(spans.activity, weights=spans.duration, minlength=len(ACTIVITIES)) / max(seconds, 1e-9)
    return {name: float(share) for name, share in zip(ACTIVITIES, sums, strict=True) if share > 0}


class _RankFile:
    """The lines of a file, as they are read; times are of the system's clock."""

    def __init__(self, values: Iterable[Any]) -> None:
        self.facts: dict[str, Any] = {}
        self.starts: list[float] = []
        self._durations: list[float] = []
        self._activities: list[int] = []
        self._details: list[int] = []
        self._staleness: dict[int, Counter[int]] = {}
        for value in values:
            self._add(value)

    def _add(self, line: Any) -> None:
        if isinstance(line, dict):
            self.facts = line
            return
        activity, start, duration = line[:3]
        details = line[3] if len(line) > 3 else {}
        detail = details.get("version", details.get("worker", NO_DETAIL))
        self.starts.append(self.facts["opened"] + start)
        self._durations.append(duration)
        self._activities.append(_INDICES.get(activity, _INDICES["other"]))
        self._details.append(detail)
        if self.facts["index"] == 0:
            for worker, staleness in details.get("staleness", ()):
                self._staleness.setdefault(worker, Counter())[staleness] += 1

    def spans(self, origin: float) -> Spans:
        facts = self.facts
        start = np.array(self.starts) - origin
        order = np.argsort(start, kind="stable")  # spans are written when they end
        return Spans(
            rank=facts["rank"],
            name=f"{facts['role']} {facts['index']} · rank {facts['rank']} · {facts['host']}",
            is_server=facts["role"] == "server",
            start=start[order],
            duration=np.array(self._durations)[order],
            activity=np.array(self._activities, np.uint8)[order],
            detail=np.array(self._details, np.int32)[order],
            staleness=self._staleness,
        )
