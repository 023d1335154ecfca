"""`hpcasync bench abort`: how soon a job ends when one of its ranks throws."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from hpcasync.bench.jobs import result_of, start_ranks
from hpcasync.bench.rows import Row, time_row
from hpcasync.errors import UserError

_PROGRAM = ("-m", "hpcasync.bench.abort_ranks")
_NUM_SERVERS, _NUM_WORKERS = 2, 2
_LIMIT_SECONDS = 1.0
ROLES = {"worker": _NUM_SERVERS, "server": 1, "coordinator": 0}


@dataclass(frozen=True)
class _Sample:
    seconds: float
    mpi: str


def bench_abort(num_rounds: int, roles: Sequence[str] = tuple(ROLES)) -> tuple[list[Row], str]:
    """Measure from the moment before an exception to that at which mpirun has ended; the rows and the MPI library.

    Args:
        num_rounds: samples for each role.
        roles: of the ranks that throw, each in its turn.

    Raises:
        UserError: a job did not end as it should: code 1, one traceback with rank and host, no process left.
    """
    rows = []
    for role in roles:
        samples = [_abort(ROLES[role]) for _ in range(num_rounds)]
        limits = [_LIMIT_SECONDS] * num_rounds
        name = f"a {role} of {_NUM_SERVERS} servers and {_NUM_WORKERS} workers throws: until the job has ended"
        seconds = [sample.seconds for sample in samples]
        rows.append(time_row(name, seconds, limits, goal=1.0, unit="s", note="one traceback, no process left"))
    return rows, samples[0].mpi


def _abort(rank: int) -> _Sample:
    num_ranks = _NUM_SERVERS + _NUM_WORKERS
    line, job = start_ranks(num_ranks, (*_PROGRAM, str(_NUM_SERVERS), str(rank)))
    heading = f"uncaught exception on rank {rank} of {num_ranks} on {socket.gethostname()}; the job ends"
    num_tracebacks = job.stderr.count("Traceback (most recent call last)")
    is_as_promised = job.returncode == 1 and num_tracebacks == 1 and heading in job.stderr and not job.stragglers
    if not is_as_promised:
        raise UserError(
            f"`{line}` ended with code {job.returncode} (1 was expected), {num_tracebacks} traceback(s) (1), "
            f"{len(job.stragglers)} process(es) left (0), and said:\n{job.stderr[-3000:]}"
        )
    result = result_of(line, job)
    return _Sample(job.ended - result["raised"], str(result["mpi"]))
