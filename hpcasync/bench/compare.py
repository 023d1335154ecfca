"""`hpcasync bench compare`: updates, and whole training runs, against other ways to train with two workers."""

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcasync.bench.jobs import run_ranks
from hpcasync.bench.rows import Row, rate_row, time_row
from hpcasync.bench.training import run_training_job
from hpcasync.errors import UserError

_NUM_WORKERS = 2
# roles.server_threads, which pays where workers wait for the update, as here; servers of peers get as many.
_SERVER_THREADS = 2
# name -> (program, ranks, how often faster ours should be)
_PEERS = {
    "Horovod allreduce, Adam on every rank": ("horovod_allreduce.py", _NUM_WORKERS, 1.0),
    "torch DDP (gloo)": ("ddp_gloo.py", _NUM_WORKERS, 1.0),
    "torch.distributed.rpc parameter server": ("rpc_server.py", _NUM_WORKERS + 1, 5.0),
    "mpi4py two-sided parameter server": ("two_sided.py", _NUM_WORKERS + 1, 1.0),
}
_ASYNCHRONOUS = "mode=async-global"
_SYNCHRONOUS = tuple(f"mode=sync sync.backend={backend}" for backend in ("horovod", "torch"))
_OURS = ("-m", "hpcasync.bench.updates_ranks")


def bench_compare(
    num_elements: int, num_rounds: int, num_updates: int, corpus: str | None, seconds: float
) -> Iterator[Row]:
    """Measure ours and a peer in turn, `num_rounds` times, then the next peer; rows come as they are complete."""
    directory = Path(__file__).parents[2] / "benchmarks" / "peers"
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not there: run this from a checkout of hpcasync, which has the peers' programs"
        )
    size = str(num_elements), str(num_updates)
    for name, (program, num_ranks, goal) in _PEERS.items():
        ours: list[float] = []
        theirs: list[float] = []
        more = (str(_SERVER_THREADS),) if num_ranks > _NUM_WORKERS else ()
        for _ in range(num_rounds):
            sample = run_ranks(_NUM_WORKERS + 1, (*_OURS, *size, str(_NUM_WORKERS), "handled", str(_SERVER_THREADS)))
            ours.append(sample["seconds_per_update"])
            sample = run_ranks(num_ranks, (str(directory / program), *size, *more))
            theirs.append(sample["seconds_per_update"])
        what = f"update of {num_elements:,}: ours against {name}"
        yield time_row(what, ours, theirs, goal=goal, note=f"{sample['version']}; {_SERVER_THREADS} threads a server")
    if corpus:
        yield from _whole_runs(corpus, seconds, num_rounds)


def _whole_runs(corpus: str, seconds: float, num_rounds: int) -> Iterator[Row]:
    """Target tokens per second of training in turn, with even workers, then with one slowed twofold.

    The baseline is whichever sums gradients faster, Horovod or torch.distributed.
    """
    with tempfile.TemporaryDirectory(prefix="hpcasync-bench-") as directory:
        for name, slowdown, goal in (("even workers", 1.0, 1.0), ("one worker slowed twofold", 2.0, 1.36)):
            rates: Mapping[str, list[float]] = {mode: [] for mode in (_ASYNCHRONOUS, *_SYNCHRONOUS)}
            for _ in range(num_rounds):
                for mode, samples in rates.items():
                    samples.append(_rate(Path(directory), corpus, mode, seconds, slowdown))
            best, note = faster({mode: rates[mode] for mode in _SYNCHRONOUS})
            what = f"training, 2 workers, {name}: async-global against sync"
            yield rate_row(what, rates[_ASYNCHRONOUS], rates[best], "tok/s", goal=goal, note=note)


def faster(rates: Mapping[str, list[float]]) -> tuple[str, str]:
    """The name with the highest median rate, and for people all of them."""
    medians = {name: statistics.median(samples) for name, samples in rates.items()}
    described = ", ".join(f"{name.split('=')[-1]} {median:,.0f}" for name, median in medians.items())
    return max(medians, key=lambda name: medians[name]), f"sync by {described}: the faster one counts"


def _rate(directory: Path, corpus: str, mode: str, seconds: float, slowdown: float) -> float:
    overrides = [*mode.split(), f"stop.seconds={seconds:g}", "staleness.fresh_start=0", "model.preset=small"]
    if slowdown > 1:
        overrides += ["straggler.worker=1", f"straggler.slowdown={slowdown:g}"]
    run_dir = run_training_job(directory, corpus, overrides, num_ranks=2 if mode in _SYNCHRONOUS else 3)
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return float(summary["target_tokens_per_second"])
