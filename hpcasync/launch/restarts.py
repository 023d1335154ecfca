"""Starting a training job again when it dies, as long as it gets forward."""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcasync.command_line import command_line, own_command
from hpcasync.complete_files import list_complete
from hpcasync.exit_codes import DIVERGED, PREEMPTED
from hpcasync.launch.supervision import SupervisedJob

_FLAGS = ("--resume", "--overwrite")
_PAUSE_SECONDS = 1.0
_USER_ERROR = 2


@dataclass(frozen=True)
class Attempt:
    """One start of a job, and how it ended.

    Attributes:
        job: how it ended.
        number: 1 for the first.
        before, after: name of the newest complete checkpoint when it started and when it ended; empty: none.
    """

    job: SupervisedJob
    number: int
    before: str
    after: str


def run_with_restarts(
    start: Callable[[list[str]], SupervisedJob],
    command: Sequence[str],
    run_dir: Path | None,
    max_restarts: int,
    launch: Sequence[str] = (),
) -> int:
    """Run `train`, and again with --resume when it dies; returns the exit code of the last start.

    Args:
        start: runs a job with these arguments of `hpcasync` to its end.
        command: `train` and its arguments.
        run_dir: the run directory; None: the arguments are wrong.
        max_restarts: most starts after the first.
        launch: what stands before the command, to say how to go on.
    """
    arguments, number = list(command), 0
    began = time.time()
    while True:
        number += 1
        before = newest_checkpoint(run_dir)
        job = start(arguments)
        attempt = Attempt(job, number, before, newest_checkpoint(run_dir))
        if _is_interrupted(job) and job.exit_code:
            _say(_how_to_go_on([*launch, *arguments_to_go_on(command, run_dir, began)], attempt.after))
            return job.exit_code
        reason = reason_to_end(attempt, max_restarts)
        if reason is not None:
            if reason:
                _say(reason + _advice(attempt.after, run_dir, command, began, max_restarts))
            return job.exit_code
        arguments = arguments_to_go_on(command, run_dir, began)
        _say(f"the job ended with code {job.exit_code}; restart {number} of {max_restarts}: {command_line(*arguments)}")
        time.sleep(_PAUSE_SECONDS)


def reason_to_end(attempt: Attempt, max_restarts: int) -> str | None:
    """Why a job that ended is not started again; None if it is; empty where there is nothing to say."""
    code = attempt.job.exit_code
    if code in (0, _USER_ERROR, PREEMPTED, DIVERGED):
        return ""
    died = f"the job ended with code {code}"
    if _is_interrupted(attempt.job):
        return f"{died} after a signal to end it"
    if attempt.number > max_restarts:
        return f"{died}, after {max_restarts} restart(s)" if max_restarts else died
    if attempt.number > 1 and attempt.after == attempt.before:
        return f"{died}, and its last start brought no new checkpoint: giving up"
    return None


def arguments_to_go_on(command: Sequence[str], run_dir: Path | None, began: float) -> list[str]:
    """The arguments of the next start: --resume where there is a checkpoint, else --overwrite.

    A run directory from before `began` (seconds since 1970) is not the job's own: then the flags stay as they were.
    """
    if run_dir is None or not _has_begun(run_dir, began):
        return list(command)
    flag = "--resume" if newest_checkpoint(run_dir) else "--overwrite"
    return [*(word for word in command if word not in _FLAGS), flag]


def newest_checkpoint(run_dir: Path | None) -> str:
    """Name of the newest complete checkpoint of a run; empty if there is none."""
    found = [] if run_dir is None else list_complete(run_dir / "checkpoints")
    return found[-1].name if found else ""


def _is_interrupted(job: SupervisedJob) -> bool:
    return any(number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for number in job.signals)


def _how_to_go_on(command: Sequence[str], checkpoint: str) -> str:
    if "--resume" in command and checkpoint:
        return f"interrupted; go on with: {own_command(*command)}"
    return f"interrupted before the first checkpoint; begin again with: {own_command(*command)}"


def _has_begun(run_dir: Path, began: float) -> bool:
    """Whether a job that was started then has written into its run directory."""
    config = run_dir / "config.yaml"
    # Clocks of file systems are coarse, and a server's may be a little behind.
    return config.is_file() and config.stat().st_mtime > began - 2


def _advice(checkpoint: str, run_dir: Path | None, command: Sequence[str], began: float, max_restarts: int) -> str:
    """Of checkpoints only where the job has begun its run, or was to go on with one."""
    if checkpoint and "--resume" in arguments_to_go_on(command, run_dir, began):
        hint = "" if max_restarts else " (`hpcasync launch --max-restarts K` does so by itself)"
        return f"; `--resume` goes on from {run_dir}/checkpoints/{checkpoint}{hint}"
    has_begun = run_dir is not None and _has_begun(run_dir, began)
    return "; there is no checkpoint to go on from" if has_begun else ""


def _say(text: str) -> None:
    print(f"hpcasync: {text}", file=sys.stderr, flush=True)
