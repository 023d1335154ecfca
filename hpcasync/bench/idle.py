"""`hpcasync bench idle`: how much of a core a server takes while its workers compute."""

from hpcasync.bench.jobs import run_ranks
from hpcasync.bench.rows import Row

_PROGRAM = ("-m", "hpcasync.bench.idle_ranks")
_NUM_WORKERS = 2
_LIMIT_PERCENT = 3.0


def bench_idle(seconds: float, step_seconds: float) -> tuple[list[Row], str]:
    """Measure the CPU time of one server, then of two, for `seconds` each; returns the rows and the MPI library.

    CPU time hardly depends on what else the machine does.
    """
    rows = []
    num_steps = max(1, round(seconds / step_seconds))
    for num_servers in (1, 2):
        arguments = str(num_servers), str(num_steps), str(step_seconds)
        result = run_ranks(num_servers + _NUM_WORKERS, (*_PROGRAM, *arguments))
        for server, percent in enumerate(result["percent"]):
            name = f"server {server} of {num_servers}, while {_NUM_WORKERS} workers compute steps of {step_seconds:g} s"
            ratio = _LIMIT_PERCENT / max(percent, 1e-9)
            rows.append(Row(name, percent, "% of a core", _LIMIT_PERCENT, ratio, goal=1.0, note="CPU time"))
    return rows, str(result["mpi"])
