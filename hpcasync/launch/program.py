"""`python -m hpcasync.launch.program PYTHON-ARGUMENTS`: a Python program as a rank of `hpcasync launch`.

Like `python -m mpi4py`: an exception on one rank ends the job. Beside that `launch` learns of the rank's death, and the
first rank of a host that fails is the one that speaks.
"""

import os
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hpcasync.deaths import lifeline
from hpcasync.errors import UserError
from hpcasync.launch.failure import abort_on_thread_errors, end_process, running_mpi
from hpcasync.launch.ranks import rank_from_environment
from hpcasync.launch.standard_input import take_input

_EXECUTE = "--execute"
# Python's options that have a value behind them.
_OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")


def command_of_ranks(command: Sequence[str]) -> list[str] | None:
    """What to start on each rank for any program; None if there is none of that name.

    A Python program for the Python of this environment runs inside a rank that `launch` watches; others just start.
    """
    path = shutil.which(command[0])
    if path is None:
        return None
    this_module = ["-m", "hpcasync.launch.program"]
    end = _end_of_options(command)
    is_own = Path(path).parent == Path(sys.executable).parent and Path(path).name.startswith("python")
    if is_own and end < len(command):
        return [path, *command[1:end], *this_module, *command[end:]]
    return [sys.executable, *this_module, _EXECUTE, *command]


def _end_of_options(command: Sequence[str]) -> int:
    """Where in `python [options] what …` the script, -m or -c is."""
    position = 1
    while position < len(command):
        word = command[position]
        if word in ("-m", "-c", "-") or not word.startswith("-"):
            return position if word != "-" else len(command)
        position += 2 if word in _OPTIONS_WITH_VALUE else 1
    return position


def run_program(arguments: list[str]) -> None:
    """As the interpreter does with the same arguments."""
    what, *rest = arguments
    if what == "-m":
        sys.argv = rest
        sys.path[0] = str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif not Path(what).exists():
        raise UserError(f"there is no program {what} (working directory {Path.cwd()})")
    else:
        sys.argv = [what, *rest]
        sys.path[0] = str(Path(what).resolve().parent)
        runpy.run_path(what, run_name="__main__")


def _say_before_exit() -> None:
    """Many programs end by os._exit once MPI is finalised: no death. Before that it ends the job, and is named."""
    leave_at_once = os._exit

    def leave(status: int) -> NoReturn:
        is_early, rank = running_mpi() is not None, rank_from_environment()
        if is_early and status:
            where = f"rank {rank.world_rank}" if rank else "a rank"
            print(
                f"hpcasync: {where} has ended by os._exit({status}), and the job with it", file=sys.stderr, flush=True
            )
        if status or not is_early:
            lifeline.leave(status)
        leave_at_once(status)

    os._exit = leave


def _with_own_frames(error: BaseException) -> BaseException:
    """Without those of this file and of runpy, of which the program knows nothing."""
    trace = error.__traceback__
    while trace is not None and (
        trace.tb_frame.f_code.co_filename == __file__ or "runpy" in trace.tb_frame.f_globals.get("__name__", "")
    ):
        trace = trace.tb_next
    return error.with_traceback(trace or error.__traceback__)


def main(arguments: list[str]) -> None:
    """Run a program and say how it ended."""
    take_input()
    if arguments[0] == _EXECUTE:
        os.environ.pop(lifeline.VARIABLE, None)
        os.execvp(arguments[1], arguments[1:])
    rank = rank_from_environment()
    lifeline.hold(rank.world_rank if rank else 0)
    abort_on_thread_errors()
    _say_before_exit()
    try:
        run_program(arguments)
    except BaseException as error:
        end_process(_with_own_frames(error), aborts_on_exit=True)
    lifeline.leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
