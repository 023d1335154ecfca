"""`hpcasync bench compare`: updates, and whole training runs, against other ways to train with two workers."""

import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcasync.bench.jobs import run_ranks
from hpcasync.bench.rows import Row, rate_row, time_row
from hpcasync.bench.training import run_training_job
from hpcasync.errors import UserError

_NUM_WORKERS = 2
# name -> (program, ranks, how often faster ours should be)
_PEERS = {
    "Horovod allreduce, Adam on every rank": ("horovod_allreduce.py", _NUM_WORKERS, 1.0),
    "torch DDP (gloo)": ("ddp_gloo.py", _NUM_WORKERS, 1.0),
    "torch.distributed.rpc parameter server": ("rpc_server.py", _NUM_WORKERS + 1, 5.0),
    "mpi4py two-sided parameter server": ("two_sided.py", _NUM_WORKERS + 1, 1.0),
}
_OURS = ("-m", "hpcasync.bench.updates_ranks")


def bench_compare(
    num_elements: int, num_rounds: int, num_updates: int, corpus: str | None, seconds: float
) -> list[Row]:
    """Measure ours and the peers in turn, `num_rounds` times.

    Raises:
        UserError: the peers' programs are not there (they are part of a checkout), or one failed.
    """
    directory = Path(__file__).parents[2] / "benchmarks" / "peers"
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not there: run this from a checkout of hpcasync, which has the peers' programs"
        )
    size = str(num_elements), str(num_updates)
    ours: list[dict[str, float]] = []
    peers: dict[str, list[dict[str, float]]] = {name: [] for name in _PEERS}
    for _ in range(num_rounds):
        ours.append(run_ranks(_NUM_WORKERS + 1, (*_OURS, *size, str(_NUM_WORKERS), "handled")))
        for name, (program, num_ranks, _) in _PEERS.items():
            peers[name].append(run_ranks(num_ranks, (str(directory / program), *size)))
    rows = [
        time_row(
            f"update of {num_elements:,}: ours against {name}",
            [sample["seconds_per_update"] for sample in ours],
            [sample["seconds_per_update"] for sample in samples],
            goal=_PEERS[name][2],
            note=str(samples[0]["version"]),
        )
        for name, samples in peers.items()
    ]
    rows += _latency(num_rounds, num_updates)
    return rows + (_whole_runs(corpus, seconds, num_rounds) if corpus else [])


def _latency(num_rounds: int, num_updates: int) -> list[Row]:
    """From the push of the last gradient to the parameters that contain it, one worker, one million parameters."""
    samples = [run_ranks(2, (*_OURS, "1000000", str(10 * num_updates), "1", "applied")) for _ in range(num_rounds)]
    parts = {
        "push": "write the gradient",
        "wait": "the server sees it, sums, steps, publishes, the worker sees that",
        "pull": "copy the parameters",
    }
    rows = []
    for key, note in parts.items():
        values = [sample[key] * 1e6 for sample in samples]
        spread = min(values), max(values)
        rows.append(
            Row(
                f"update latency, 1,000,000 parameters: {key}",
                statistics.median(values),
                "us",
                spread=spread,
                note=note,
            )
        )
    return rows


def _whole_runs(corpus: str, seconds: float, num_rounds: int) -> list[Row]:
    """Target tokens per second of training, even workers and one slowed twofold."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="hpcasync-bench-") as directory:
        for name, slowdown, goal in (("even workers", 1.0, 1.0), ("one worker slowed twofold", 2.0, 1.36)):
            rates: Mapping[str, list[float]] = {"async-global": [], "sync": []}
            for _ in range(num_rounds):
                for mode, samples in rates.items():
                    samples.append(_rate(Path(directory), corpus, mode, seconds, slowdown))
            what = f"training, 2 workers, {name}: async-global against sync"
            rows.append(rate_row(what, rates["async-global"], rates["sync"], "tok/s", goal=goal))
    return rows


def _rate(directory: Path, corpus: str, mode: str, seconds: float, slowdown: float) -> float:
    overrides = [f"mode={mode}", f"stop.seconds={seconds:g}", "accumulate.global=2", "model.preset=small"]
    if slowdown > 1:
        overrides += ["straggler.worker=1", f"straggler.slowdown={slowdown:g}"]
    run_dir = run_training_job(directory, corpus, overrides, num_ranks=2 if mode == "sync" else 3)
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return float(summary["target_tokens_per_second"])
