"""`hpcasync bench memory`: what a rank's process occupies while it trains, beside what its model needs."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpcasync.bench.jobs import run_ranks
from hpcasync.bench.rows import Row
from hpcasync.bench.training import write_configuration

_PROGRAM = ("-m", "hpcasync.bench.resident_ranks")
_NUM_RANKS = 3


def bench_memory(corpus: str, num_updates: int, overrides: Sequence[str]) -> Iterator[Row]:
    """Train with one server and two workers; rows of the server, then of the workers, with what is known of each.

    Args:
        overrides: `key=value` settings of the run.

    Raises:
        UserError: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="hpcasync-bench-") as directory:
        config = write_configuration(Path(directory), corpus)
        runs = (f"run_dir={directory}/runs", f"stop.updates={num_updates}", "checkpoint.every=1000000")
        ranks = run_ranks(_NUM_RANKS, (*_PROGRAM, str(config), *runs, *overrides))
    for rank in ranks:
        yield from _rows(rank)


def _rows(rank: dict[str, Any]) -> Iterator[Row]:
    most, needed = rank["most"], rank["needed"]
    total = sum(most.values())
    model = sum(needed.values())
    yield Row(
        f"{rank['role']}: resident at most",
        total,
        "MB",
        model,
        ratio=model / total,
        note=f"{most['RssAnon']:.0f} private, {most['RssShmem']:.0f} shared by ranks, {most['RssFile']:.0f} of files",
    )
    for name, megabytes in rank["imports"].items():
        yield Row(f"  {name}", megabytes, "MB")
    for name, megabytes in needed.items():
        yield Row(f"  {name}", megabytes, "MB", note="needed")
    yield Row("  the rest", max(0.0, total - model - sum(rank["imports"].values())), "MB")
