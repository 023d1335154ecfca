"""Ending a job some of whose ranks may never end by themselves."""

import sys
import threading
import time

from mpi4py import MPI

from hpcasync.deaths import lifeline


def abort_after(seconds: float, exit_code: int, message: str) -> None:
    """End all ranks of the job in `seconds`, unless this process has ended before; everything must be on disk."""

    def wait_and_abort() -> None:
        time.sleep(seconds)
        lifeline.leave(exit_code)
        print(message, file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(exit_code)

    threading.Thread(target=wait_and_abort, daemon=True).start()
