"""What of a job's output reaches the terminal."""

import pytest

from hpcasync.launch.relay import NoticeFilter

FRAME = b"-" * 74 + b"\n"
EXITED = [
    FRAME,
    b"prterun detected that one or more processes exited with non-zero status,\n",
    b"thus causing the job to be terminated.\n",
    FRAME,
]
ABORT = [FRAME, b"MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\n", FRAME]
SRUN = [FRAME, b"srun returned non-zero exit status (36608) from launching\n", b"the per-node daemon.\n", FRAME]
KILLED = [
    FRAME,
    b"prterun noticed that process rank 1 with PID 3 on node n0 exited on\n",
    b"signal 9 (Killed).\n",
    FRAME,
]
MPICH = [b"Abort(2) on node 1 (rank 1 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 2) - process 1\n"]


def taken_and_left(lines: list[bytes]) -> tuple[bytes, bytes]:
    notices = NoticeFilter()
    left = b"".join(map(notices.take, lines)) + notices.flush()
    return notices.notices, left


@pytest.mark.parametrize("notice", [EXITED, ABORT, SRUN, MPICH])
def test_notices_of_failure_are_taken_out(notice: list[bytes]) -> None:
    before, after = [b"hpcasync: error: mine\n"], [b"more\n"]
    assert taken_and_left([*before, *notice, *after]) == (b"".join(notice), b"".join(before + after))


@pytest.mark.parametrize("lines", [KILLED, [FRAME, b"a table\n"], [FRAME, *[b"row\n"] * 40, FRAME], EXITED[:-1]])
def test_everything_else_passes(lines: list[bytes]) -> None:
    assert taken_and_left(lines) == (b"", b"".join(lines))
