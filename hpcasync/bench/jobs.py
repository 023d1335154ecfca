"""Running the measuring programs of this package, and of benchmarks/peers, on MPI ranks."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hpcasync.bench.network_hosts import NetworkHosts
from hpcasync.errors import UserError
from hpcasync.launch.here import job_line_here
from hpcasync.launch.locate import find_launcher
from hpcasync.launch.mpirun import JobLine
from hpcasync.launch.process import FinishedJob, capture, environment_of_ranks

# Programs print one line that begins so, then JSON; MPI libraries print what they like.
RESULT = "hpcasync-bench-result "
_TIMEOUT_SECONDS = 900.0


def run_ranks(
    num_ranks: int,
    program: Sequence[str],
    *,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    hosts: NetworkHosts | None = None,
) -> Any:
    """Start `python *program` on ranks and return what one of them printed behind `RESULT`.

    Args:
        program: arguments of this Python, for example ("-m", "package.module", "60000000").
        options: mpirun options, such as hosts.
        variables: environment beside the caller's.
        hosts: that ranks are spread over; default: this one.
    """
    line, job = start_ranks(num_ranks, program, options=options, variables=variables, hosts=hosts)
    require_success(line, job)
    return result_of(line, job)


def start_ranks(
    num_ranks: int,
    program: Sequence[str],
    *,
    options: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    hosts: NetworkHosts | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
) -> tuple[JobLine, FinishedJob]:
    """Like `run_ranks`, however the job ends; returns what was started, too."""
    environment = environment_of_ranks() | dict(variables or {})
    command = (sys.executable, *program)
    if hosts is not None:
        options = (*hosts.mpirun_options(find_launcher().flavour, num_ranks), *options)
    line = job_line_here(num_ranks, command, environment=environment, options=options)
    if hosts is not None:
        line = JobLine(hosts.on(0, line.argv), line.variables)
    return line, capture(line, environment, timeout_seconds=timeout_seconds)


def require_success(line: JobLine, job: FinishedJob, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
    """Raise a UserError with the end of what the job printed, if it failed or took too long."""
    if job.returncode or job.timed_out:
        why = f"did not end within {timeout_seconds:g} s" if job.timed_out else f"ended with code {job.returncode}"
        raise UserError(f"`{line}` {why}:\n{(job.stderr or job.stdout)[-3000:]}")


def result_of(line: JobLine, job: FinishedJob) -> Any:
    """What a rank printed behind `RESULT`."""
    results = [text.removeprefix(RESULT) for text in job.stdout.splitlines() if text.startswith(RESULT)]
    if len(results) != 1:
        raise UserError(
            f"`{line}` printed {len(results)} results instead of one:\n{(job.stderr or job.stdout)[-3000:]}"
        )
    return json.loads(results[0])
