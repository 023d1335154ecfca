"""`hpcasync bench latency`: from a finished gradient to the parameters that contain it, part by part."""

from typing import Any

from hpcasync.bench.jobs import run_ranks
from hpcasync.bench.rows import Row, spread_row

_PROGRAM = ("-m", "hpcasync.bench.latency_ranks")
_PARTS = {
    "total": "",
    "push": "the worker announces the gradient, which lies where it was computed",
    "until seen": "the server's next look",
    "decisions": "the server reads the record and decides",
    "step": "sum, Adam, copy to the workers' buffer",
    "publication": "the server tells the worker",
    "until noticed": "the worker's next look",
    "pull": "the worker copies the parameters",
}


def bench_latency(
    num_elements: int, num_updates: int, num_rounds: int, compute_seconds: float
) -> tuple[list[Row], str]:
    """One worker and one server: gradients one after the other, then with computation between them.

    A sample is the median of a run of `num_updates`. Returns the rows and the MPI library.
    """
    cases = {"at once": 0.0, f"after {compute_seconds * 1e3:g} ms of computation": compute_seconds}
    samples: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(num_rounds):
        for case, seconds in cases.items():
            samples[case].append(run_ranks(2, (*_PROGRAM, str(num_elements), str(num_updates), str(seconds))))
    rows = []
    for case, runs in samples.items():
        for part, note in _PARTS.items():
            name = f"update of {num_elements:,}, {case}" if part == "total" else f"  {part}"
            rows.append(spread_row(name, [run[part] * 1e6 for run in runs], "us", note=note))
    return rows, str(runs[0]["mpi"])
