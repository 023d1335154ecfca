"""The processes of a job: a time limit, nothing left behind."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from hpcasync.errors import UserError
from hpcasync.launch.mpirun import JobLine
from hpcasync.launch.session_directory import remove_left_session, session_directory
from hpcasync.launch.shared_memory import remove_left_segments

# In the environment of every process of a job, so that what outlives mpirun can be found: ranks have process groups of
# their own, and new parents when mpirun is gone.
JOB_VARIABLE = "HPCASYNC_JOB"

# mpirun ends its ranks on SIGTERM within about a second; then they are killed.
_GRACE_SECONDS = 5.0
# A directory in the way costs a start; nobody leaves so many in a row.
_MOST_STARTS = 200


@dataclass(frozen=True)
class FinishedJob:
    """What a captured job did.

    Attributes:
        returncode: of mpirun; 128 + N when a signal ended it.
        timed_out: whether it was ended at its time limit.
        stragglers: command lines of processes of the job that were there after mpirun had ended, and were killed.
        ended: when mpirun had ended (time.monotonic).
    """

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool
    stragglers: tuple[str, ...]
    ended: float


def capture(line: JobLine, environment: Mapping[str, str], *, timeout_seconds: float) -> FinishedJob:
    """Run a job without a terminal and return what it printed; at the time limit all of it is ended."""
    job, started_at = uuid.uuid4().hex, time.time()
    process = start_mpirun(
        line.argv,
        env={**environment, **line.variables, JOB_VARIABLE: job},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    guard = ParentGuard(process.pid)
    timed_out = False
    stragglers: tuple[str, ...] = ()
    try:
        try:
            stdout, stderr = process.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            clean_up(process, job, started_at)
            stdout, stderr = process.communicate(timeout=_GRACE_SECONDS)
        ended = time.monotonic()
    finally:
        guard.close()
        stragglers = clean_up(process, job, started_at)
    return FinishedJob(exit_code(process.returncode), stdout, stderr, timed_out, stragglers, ended)


def start_mpirun(argv: Sequence[str], **how: Any) -> "subprocess.Popen[Any]":
    """Start mpirun in a session of its own, under a process id that no killed one has left a directory of.

    What is in the way is not removed: it may be in use, by a container that numbers its processes anew.

    Args:
        how: what subprocess.Popen takes.
    """
    left = session_directory(0).with_suffix(".*")  # finds the directory of all of them, once, before any fork

    def prepare() -> None:
        # Nobody may read what mpirun says of its end; it must not die of that before its ranks.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        if session_directory(os.getpid()).exists():
            raise FileExistsError

    for _ in range(_MOST_STARTS):
        try:
            return subprocess.Popen(argv, start_new_session=True, preexec_fn=prepare, **how)
        except subprocess.SubprocessError:  # what `prepare` raises
            continue
    raise UserError(f"mpirun finds directories of killed jobs in its way: remove {left}, unless a job is running")


def clean_up(
    process: "subprocess.Popen[bytes] | subprocess.Popen[str] | None", job: str, started_at: float
) -> tuple[str, ...]:
    """End mpirun if it still runs, and what of the job is left without it. Returns the command lines of the latter."""
    if process is None:
        return ()
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    if process.poll() is None:
        process.kill()
        process.wait()
    left = _wait_for_end(job, seconds=_GRACE_SECONDS if process.returncode == 0 else 1.0)
    commands = tuple(" ".join(straggler.info["cmdline"] or ["?"])[:200] for straggler in left)
    for straggler in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            straggler.kill()
    if process.returncode != 0 or left:
        _wait_for_end(job, seconds=1.0)
    remove_left_segments(started_at)  # also after a good end: a rank may have been killed on the way to it
    remove_left_session(process.pid)
    return commands


def _wait_for_end(job: str, seconds: float) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while (left := list(_processes_of(job))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _processes_of(job: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["environ", "cmdline", "status"]):
        marked = (process.info["environ"] or {}).get(JOB_VARIABLE) == job
        if marked and process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
            yield process


class ParentGuard:
    """Sends a process SIGTERM, once, when this one is killed and cannot do so.

    Not by Linux's parent death signal: that comes again for each thread of a parent that is killed, and mpirun takes a
    second SIGTERM for an order to end at once, without its ranks.
    """

    def __init__(self, pid: int) -> None:
        # At the end of its input, which the kernel closes with this process, it sends the signal.
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r line || kill -TERM "$0"', str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """The process has ended, or is left alone from now on."""
        with contextlib.suppress(OSError):
            self._shell.communicate(b"done\n")


def exit_code(returncode: int) -> int:
    """As shells have it: 128 + N for a process that signal N ended."""
    return 128 - returncode if returncode < 0 else returncode


def is_terminal() -> bool:
    """Whether standard output is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def environment_of_ranks() -> dict[str, str]:
    """This process's environment for a job whose output goes where ours goes.

    mpirun gives ranks pseudo-terminals of no size, whatever its own output is; here it is known.
    """
    variables = dict(os.environ)
    if "SLURM_STEP_ID" in variables:
        # mpirun's own srun would wait for the end of the step that this process is.
        variables.setdefault("SLURM_OVERLAP", "1")
    if not is_terminal():
        return {**variables, "HPCASYNC_TERMINAL": "0"}
    columns = str(shutil.get_terminal_size().columns)
    return {**variables, "HPCASYNC_TERMINAL": "1", "COLUMNS": columns}
