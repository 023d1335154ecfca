"""`hpcasync bench idle`: how much of a core a server takes while its workers compute."""

from collections.abc import Sequence
from contextlib import nullcontext

from hpcasync.bench.jobs import run_ranks
from hpcasync.bench.network_hosts import linked_hosts
from hpcasync.bench.rows import Row

_PROGRAM = ("-m", "hpcasync.bench.idle_ranks")
_NUM_WORKERS = 2
_LIMIT_PERCENT = 3.0


def bench_idle(
    seconds: float, step_seconds: float, options: Sequence[str] = (), link: str | None = None
) -> tuple[list[Row], str]:
    """Measure the CPU time of one server, then of two, for `seconds` each; returns the rows and the MPI library.

    CPU time hardly depends on what else the machine does.

    Args:
        seconds: length of a sample.
        step_seconds: that a worker computes for a push.
        options: mpirun's, such as hosts.
        link: speed of the link between two hosts that are made here for the ranks; None: none are made.

    Raises:
        UserError: `link` is no rate, or no hosts can be made here; or a job failed.
    """
    rows = []
    num_steps = max(1, round(seconds / step_seconds))
    for num_servers in (1, 2):
        program = (*_PROGRAM, str(num_servers), str(num_steps), str(step_seconds))
        with nullcontext() if link is None else linked_hosts(link) as hosts:
            result = run_ranks(num_servers + _NUM_WORKERS, program, options=options, hosts=hosts)
        where = f" on {result['hosts']} hosts" if result["hosts"] > 1 else ""
        for server, percent in enumerate(result["percent"]):
            name = f"server {server} of {num_servers}, while {_NUM_WORKERS} workers{where} compute {step_seconds:g} s"
            ratio = _LIMIT_PERCENT / max(percent, 1e-9)
            rows.append(Row(name, percent, "% of a core", _LIMIT_PERCENT, ratio, goal=1.0, note="CPU time"))
    return rows, str(result["mpi"])
