"""The timeline of a run as the page's script takes it: all spans packed, and shares of time for the overview."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpcasync.report.palette import ACTIVITY_COLOURS, OUTSIDE_COLOUR
from hpcasync.report.spans import ACTIVITIES, Spans, activity_shares, totals

# A page with more becomes slow to open: about twenty bytes each.
MAX_SPANS = 400_000
_NUM_BINS = 160


def pack_timeline(name: str, ranks: Sequence[Spans], begin: float, end: float | None) -> dict[str, Any]:
    """What the script needs of one run.

    Args:
        begin, end: seconds between which spans are packed; no end: as many as a page bears.

    Returns:
        JSON's types; arrays are base64 of little-endian float64 (start), float32 (duration), uint8 (activity) and int32
        (detail). `cut` is the second from which on spans were left out, or None.
    """
    last = max(spans.end for spans in ranks)
    cut = _first_left_out(ranks, begin, last if end is None else end)
    edges = np.linspace(0.0, max(last, 1e-6), _NUM_BINS + 1)
    return {
        "name": name,
        "seconds": last,
        "begin": begin,
        "cut": cut,
        "activities": [{"name": activity, "colour": ACTIVITY_COLOURS[activity]} for activity in ACTIVITIES],
        "outside": OUTSIDE_COLOUR,
        "ranks": [_pack_rank(spans, begin, last if cut is None else cut, last) for spans in ranks],
        "overview": {
            "edges": [round(float(edge), 4) for edge in edges],
            "roles": [
                {"name": role, "shares": _mean_shares(members, edges)}
                for role, members in (
                    ("workers", [spans for spans in ranks if not spans.is_server]),
                    ("servers", [spans for spans in ranks if spans.is_server]),
                )
                if members
            ],
        },
    }


def _first_left_out(ranks: Sequence[Spans], begin: float, end: float) -> float | None:
    """Where to cut so that at most MAX_SPANS remain; None if nothing of the run is cut off."""
    starts = np.sort(np.concatenate([spans.start for spans in ranks]))
    first, beyond = np.searchsorted(starts, [begin, end])
    if beyond - first > MAX_SPANS:
        return float(starts[first + MAX_SPANS])
    return None if beyond == len(starts) else float(end)


def _pack_rank(spans: Spans, begin: float, end: float, seconds: float) -> dict[str, Any]:
    chosen = (spans.start + spans.duration >= begin) & (spans.start <= end)
    return {
        "name": spans.name,
        "server": spans.is_server,
        "totals": {activity: round(share, 4) for activity, share in totals(spans, seconds).items()},
        "start": _base64(spans.start[chosen], "<f8"),
        "duration": _base64(spans.duration[chosen], "<f4"),
        "activity": _base64(spans.activity[chosen], "u1"),
        "detail": _base64(spans.detail[chosen], "<i4"),
    }


def _mean_shares(members: Sequence[Spans], edges: np.ndarray) -> dict[str, list[float]]:
    mean = np.mean([activity_shares(spans, edges) for spans in members], axis=0)
    return {
        activity: [round(float(share), 4) for share in mean[index]]
        for index, activity in enumerate(ACTIVITIES)
        if mean[index].any()
    }


def _base64(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(values.astype(dtype).tobytes()).decode()
