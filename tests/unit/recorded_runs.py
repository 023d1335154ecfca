"""Run directories with the records of runs that never were: numbers that tests can compute with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcasync.config.schema import Config, parse_config

# BLEU of the snapshots, one every 60 s.
SCORES = (10.0, 20.0, 26.0, 31.0)


def make_run(
    directory: Path,
    mode: str,
    *,
    seed: int = 1,
    scores: Sequence[float] = SCORES,
    seconds_per_snapshot: float = 60.0,
    is_finished: bool = True,
    workers: int = 2,
    histogram: dict[int, int] | None = None,
    **values: Any,
) -> Path:
    """Write config.yaml, metrics.jsonl and summary.json as a run of `mode` does, and return the run directory.

    A snapshot is made each 100 updates of 1000 target tokens; `values` are sections of the configuration.
    """
    config = parse_config(
        {"name": "made", "run_dir": str(directory), "mode": mode, "seed": seed, "data": {"path": "data/made"},
         "stop": {"updates": 400}, **values},
        "test",
    )  # fmt: skip
    run_dir = config.output_dir
    run_dir.mkdir(parents=True)
    config.save(run_dir / "config.yaml")
    records: list[dict[str, Any]] = [{"event": "start", "versions": {"torch": "2"}}]
    for number, bleu in enumerate(scores, start=1):
        at = _counters(number, seconds_per_snapshot)
        records.append(
            {"event": "update", **at, "loss": 6.0 / number, "learning_rate": 1e-3 / number, "staleness_mean": 0.5,
             "target_tokens_per_second": 1e5 / seconds_per_snapshot}
        )  # fmt: skip
        records.append({"event": "validation", "name": f"u{at['num_updates']:08d}", **at, "bleu": bleu, "loss": 5.0})
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if is_finished:
        summary = _summary(config, workers, histogram or {0: 10}, _counters(len(scores), seconds_per_snapshot))
        (run_dir / "summary.json").write_text(json.dumps(summary))
    return run_dir


def _counters(number: int, seconds_per_snapshot: float) -> dict[str, Any]:
    return {
        "num_updates": 100 * number,
        "target_tokens": 100_000 * number,
        "wall_seconds": seconds_per_snapshot * number,
    }


def _summary(config: Config, workers: int, histogram: dict[int, int], counters: dict[str, Any]) -> dict[str, Any]:
    number = sum(histogram.values())
    return {
        "name": config.name,
        "mode": config.mode,
        "roles": {"servers": config.num_servers, "workers": workers},
        **counters,
        "target_tokens_per_second": counters["target_tokens"] / max(1.0, counters["wall_seconds"]),
        "staleness": {
            "mean": sum(staleness * count for staleness, count in histogram.items()) / number,
            "max": max(histogram),
            "histogram": {str(staleness): count for staleness, count in histogram.items()},
        },
        "stop_reason": "stop.updates=400 reached",
        "configuration_digest": config.digest,
    }


def write_timeline(run_dir: Path, rank: int, role: str, index: int, opened: float, spans: Sequence[Any]) -> None:
    """A timeline file with the spans given, as `hpcasync.timeline` writes it."""
    facts = {"rank": rank, "role": role, "index": index, "host": "node1", "opened": opened}
    lines = ["", json.dumps(facts), *(json.dumps(span) for span in spans)]
    with (run_dir / f"timeline-{rank:04d}.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")
