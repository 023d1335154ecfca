"""How a process of a job ends on an error: one message for the whole job, and no rank left waiting for a dead one."""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import click

from hpcasync.deaths import lifeline
from hpcasync.errors import UserError, as_user_error
from hpcasync.launch.ranks import JobRank, job_name, rank_from_environment
from hpcasync.launch.surroundings import drop_unwritten_output

# Before MPI has started, a mistake mostly meets all ranks, and rank 0 speaks for them. Another rank that is still alive
# after this time met one of its own.
_GRACE_SECONDS = 1.5
# What was printed has to pass through mpirun before mpirun is told to end.
_RELAY_SECONDS = 0.2
_KILLED_SECONDS = 10.0

# What a rank does before the others are ended because its program has.
_farewells: list[Callable[[], object]] = []
# Kept open until the process ends.
_held_names: list[socket.socket] = []


def end_process(error: BaseException, *, aborts_on_exit: bool = False) -> NoReturn:
    """Report an error that nothing caught and exit: with a message for users' mistakes, with a traceback otherwise.

    In a job of several ranks one rank reports and all end. Before MPI has started, rank 0 reports unless only others
    failed. A UserError raised everywhere is reported by rank 0, and MPI is finalised.

    Args:
        aborts_on_exit: sys.exit with another code than 0 on one rank ends all, which may be waiting for it.
    """
    error = as_user_error(error)
    exit_code = _exit_code(error)
    lifeline.leave(exit_code)
    drop_unwritten_output()
    mpi = running_mpi()
    if isinstance(error, SystemExit):
        if aborts_on_exit and exit_code and mpi is not None:
            if not isinstance(error.code, int):
                print(error.code, file=sys.stderr, flush=True)
            for farewell in _farewells:
                farewell()
            time.sleep(_RELAY_SECONDS)
            mpi.COMM_WORLD.Abort(exit_code)
        raise error
    if mpi is not None:
        _end_running_job(mpi, error, exit_code)
    elif rank := rank_from_environment():
        _end_starting_job(rank, error, exit_code)
    else:
        _report(error, None)
    sys.exit(exit_code)


def before_exit(farewell: Callable[[], object]) -> None:
    """Have something done before sys.exit on this rank ends all."""
    _farewells.append(farewell)


def abort_on_thread_errors() -> None:
    """Make an exception that ends a thread end the process and its job, which would wait for the thread for ever."""

    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if error is None or isinstance(error, SystemExit):
            return
        lifeline.leave(_exit_code(error))
        mpi = running_mpi()
        if mpi is None and isinstance(error, UserError):
            _report(error, None)
            os._exit(error.exit_code)
        if mpi is None:
            threading.__excepthook__(arguments)
        else:
            _end_running_job(mpi, error, _exit_code(error), may_finalise=False)

    threading.excepthook = hook


def _end_running_job(mpi: ModuleType, error: BaseException, exit_code: int, *, may_finalise: bool = True) -> None:
    """Report and abort; returns only where all ranks exit by themselves."""
    world = mpi.COMM_WORLD
    if may_finalise and isinstance(error, UserError) and error.everywhere:
        if world.rank == 0:
            _report(error, None)
        return
    rank = JobRank(world.rank, world.size, job_name())
    if _is_first_on_host(rank):
        _report(error, rank)
        time.sleep(_RELAY_SECONDS)
    else:
        # Another rank of this host has reported and is about to abort; this is for the case that it cannot.
        time.sleep(_KILLED_SECONDS)
    world.Abort(exit_code)


def _end_starting_job(rank: JobRank, error: BaseException, exit_code: int) -> None:
    if rank.world_rank != 0:
        time.sleep(_GRACE_SECONDS)
    if _is_first_on_host(rank):
        speaks_for_all = rank.world_rank == 0 and isinstance(error, UserError)
        _report(error, None if speaks_for_all else rank)
    _abort_through_hydra(exit_code)


def _abort_through_hydra(exit_code: int) -> None:
    """Tell hydra to end all ranks: unlike Open MPI's mpirun it lets the others live when one exits before MPI_Init.

    The message is `cmd=abort` of the PMI-1 wire protocol.
    """
    descriptor = os.environ.get("PMI_FD", "")
    if descriptor.isdecimal():
        time.sleep(_RELAY_SECONDS)
        with contextlib.suppress(OSError):
            os.write(int(descriptor), f"cmd=abort exitcode={exit_code}\n".encode())
            # Not before being killed: another rank could take itself for the first.
            time.sleep(_KILLED_SECONDS)


def _is_first_on_host(rank: JobRank) -> bool:
    """Whether no other rank of the job on this host has asked before."""
    session = os.environ.get("PMIX_SERVER_TMPDIR", "")
    if session:
        # Open MPI's directory of this job on this host, which mpirun removes: the answer outlives the rank that asked.
        try:
            (Path(session) / f"hpcasync-reported-{rank.job_name}").touch(exist_ok=False)
            return True
        except FileExistsError:
            return False
        except OSError:
            pass
    if not sys.platform.startswith("linux"):
        return True
    # An abstract socket name can be bound once, by one process, and vanishes with it.
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(f"\0hpcasync-{os.getuid()}-{rank.job_name}"[:100])
    except OSError:
        return False
    _held_names.append(name)
    return True


def running_mpi() -> ModuleType | None:
    """mpi4py.MPI of a job of several ranks between start and end of MPI; never starts it."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized() or mpi.COMM_WORLD.size == 1:
        return None
    return mpi


def _exit_code(error: BaseException) -> int:
    if isinstance(error, UserError | click.ClickException):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, click.Abort | KeyboardInterrupt) else 1


def _report(error: BaseException, rank: JobRank | None) -> None:
    """Print the one message; `rank` is named unless the error is one of all ranks."""
    sys.stdout.flush()
    if isinstance(error, UserError):
        where = f" on {rank}" if rank else ""
        print(f"hpcasync: error{where}: {error}", file=sys.stderr)
    elif isinstance(error, click.ClickException):
        error.show()
    elif isinstance(error, click.Abort | KeyboardInterrupt):
        print("hpcasync: interrupted", file=sys.stderr)
    else:
        heading = f"hpcasync: uncaught exception on {rank}; the job ends\n" if rank else ""
        print(heading + "".join(traceback.format_exception(error)), end="", file=sys.stderr)
    sys.stderr.flush()
