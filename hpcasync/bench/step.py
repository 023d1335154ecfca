"""`hpcasync bench step`: how much of a worker's time is not computation, in a real training run."""

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpcasync.bench.rows import Row
from hpcasync.bench.training import run_training_job
from hpcasync.timeline import read_timelines

_WARM_UP = 2


def bench_step(corpus: str, preset: str, num_updates: int, batch_tokens: int) -> list[Row]:
    """Train with one server and two workers and read from the workers' timelines where their time went.

    Raises:
        UserError: the run failed.
    """
    overrides = [
        "mode=async-global",
        "accumulate.global=2",
        f"model.preset={preset}",
        f"data.batch_tokens={batch_tokens}",
        f"stop.updates={num_updates + _WARM_UP}",
        "logging.timeline=true",
        "checkpoint.every=1000000",
    ]
    with tempfile.TemporaryDirectory(prefix="hpcasync-bench-") as directory:
        run_dir = run_training_job(Path(directory), corpus, overrides, num_ranks=3)
        workers = [_activities(values) for values in read_timelines(run_dir)]
    workers = [activities for activities in workers if "compute" in activities]
    rows, shares = [], []
    for activities in workers:
        total = sum(map(sum, activities.values()))
        shares.append(1 - sum(activities["compute"]) / total)
    rows.append(
        Row(
            f"part of a worker's time that is not computation, preset {preset}",
            100 * statistics.median(shares),
            "%",
            limit=3.0,
            ratio=3.0 / max(1e-9, 100 * statistics.median(shares)),
            goal=1.0,
            spread=(100 * min(shares), 100 * max(shares)),
            note="limit: 3 %",
        )
    )
    for activity in ("compute", "push", "wait", "pull"):
        values = [1e3 * statistics.median(activities[activity]) for activities in workers if activities[activity]]
        rows.append(Row(f"  {activity}", statistics.median(values), "ms", spread=(min(values), max(values))))
    return rows


def _activities(values: Iterable[Any]) -> dict[str, list[float]]:
    """Durations of each activity in seconds, without those of the warm-up."""
    durations: dict[str, list[float]] = defaultdict(list)
    for span in values:
        if isinstance(span, list):
            durations[span[0]].append(float(span[2]))
    return {activity: values[_WARM_UP:] for activity, values in durations.items()}
