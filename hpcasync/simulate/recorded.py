"""What the timelines of a real run (`logging.timeline`) tell about the times on its cluster."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcasync import timeline
from hpcasync.config.schema import load_config
from hpcasync.errors import UserError

# Of each rank: the first batches pay for allocations and caches.
_SPANS_LEFT_OUT = 5


@dataclass
class RankTimes:
    """Spans of a rank.

    Attributes:
        role: "server" or "worker".
        index: server_index or worker_index.
        computed: (target tokens, seconds) of each push that was computed.
        seconds: durations of the other activities, by their name.
        num_pushes: of each apply: gradients in it.
    """

    role: str
    index: int
    computed: list[tuple[int, float]] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    num_pushes: list[int] = field(default_factory=list)


def read_timelines(run_dir: Path) -> list[RankTimes]:
    """The ranks of a run, in order; a straggler's times as they would be without its being slowed down."""
    straggler = load_config(run_dir / "config.yaml").straggler
    ranks = [rank for values in timeline.read_timelines(run_dir) if (rank := _times_of(values)) is not None]
    for rank in ranks:
        if rank.role == "worker" and rank.index == straggler.worker:
            rank.computed = [(tokens, seconds / straggler.slowdown) for tokens, seconds in rank.computed]
    if not any(rank.computed for rank in ranks):
        raise UserError(
            f"{run_dir} has no timelines of workers to take times from: train with logging.timeline=true, for more "
            f"than {_SPANS_LEFT_OUT} updates"
        )
    return ranks


def seconds_per_token(ranks: Sequence[RankTimes]) -> list[list[float]]:
    """Of each worker that computed, in order of its index, for each push."""
    workers = sorted((rank for rank in ranks if rank.role == "worker" and rank.computed), key=lambda rank: rank.index)
    return [[seconds / tokens for tokens, seconds in rank.computed] for rank in workers]


def _times_of(values: Iterable[Any]) -> RankTimes | None:
    rank = None
    num_left_out: dict[str, int] = {}
    for value in values:
        if isinstance(value, dict):
            rank = rank or RankTimes(value["role"], value["index"])
            num_left_out.clear()
            continue
        assert rank is not None
        activity, _, duration, *details = value
        num_left_out[activity] = num_left_out.get(activity, 0) + 1
        if num_left_out[activity] > _SPANS_LEFT_OUT:
            _add(rank, activity, duration, details[0] if details else {})
    return rank


def _add(rank: RankTimes, activity: str, duration: float, details: dict[str, Any]) -> None:
    if activity == "compute":
        tokens = sum(details.get("tokens", ()))
        if tokens:  # none in a gradient that was rejected
            rank.computed.append((tokens, duration))
        return
    rank.seconds.setdefault(activity, []).append(duration)
    if activity == "apply":
        rank.num_pushes.append(len(details.get("staleness", ())))
