"""`hpcasync bench idle`: how much of a core a server takes while its workers compute."""

from collections.abc import Sequence
from typing import Any

from hpcasync.bench.jobs import run_ranks
from hpcasync.bench.network_hosts import NetworkHosts, bytes_per_second, reason_to_skip
from hpcasync.bench.rows import Row
from hpcasync.errors import UserError
from hpcasync.launch.locate import find_launcher

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
    if link is not None:
        bytes_per_second(link)
        if reason := reason_to_skip():
            raise UserError(f"--link makes two hosts on this machine: {reason}")
    rows = []
    num_steps = max(1, round(seconds / step_seconds))
    for num_servers in (1, 2):
        program = (*_PROGRAM, str(num_servers), str(num_steps), str(step_seconds))
        result = _run(num_servers + _NUM_WORKERS, program, options, link)
        where = f" on {result['hosts']} hosts" if result["hosts"] > 1 else ""
        for server, percent in enumerate(result["percent"]):
            name = f"server {server} of {num_servers}, while {_NUM_WORKERS} workers{where} compute {step_seconds:g} s"
            ratio = _LIMIT_PERCENT / max(percent, 1e-9)
            rows.append(Row(name, percent, "% of a core", _LIMIT_PERCENT, ratio, goal=1.0, note="CPU time"))
    return rows, str(result["mpi"])


def _run(num_ranks: int, program: Sequence[str], options: Sequence[str], link: str | None) -> Any:
    if link is None:
        return run_ranks(num_ranks, program, options=options)
    with NetworkHosts(2, link) as hosts:
        where = (*hosts.mpirun_options(find_launcher().flavour, num_ranks), *options)
        return run_ranks(num_ranks, program, options=where, prefix=hosts.on(0, ()))
