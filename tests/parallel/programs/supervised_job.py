"""Runs itself on two ranks under `supervise`, as `hpcasync launch` does: HOW (what ranks do), FILE (where to)."""

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from hpcasync.deaths.lifeline_hub import Lifelines
from hpcasync.launch.here import job_line_here
from hpcasync.launch.process import environment_of_ranks
from hpcasync.launch.supervision import supervise


def start(how: str, file: str) -> int:
    environment = environment_of_ranks()
    program = [sys.executable, __file__, how, file, "rank"]
    line = job_line_here(2, program, environment=environment)
    return supervise(line, environment, Lifelines(2, is_local=True), saves_on_usr1=how == "save-on-usr1").exit_code


def be_a_rank(how: str, file: Path) -> None:
    received = 0

    def count(_number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received += 1

    signal.signal(signal.SIGUSR1, count)
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if how == "exit":
        sys.exit(7)
    if how in ("wait-for-usr1", "sleep"):
        file.with_suffix(f".{world.rank}").write_text(str(os.getpid()))
        deadline = time.monotonic() + 600  # more than any test waits
        while not (how == "wait-for-usr1" and received) and time.monotonic() < deadline:
            time.sleep(0.02)
        total = world.reduce(received)
        if world.rank == 0:
            file.write_text(f"{total}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.exit(start(*sys.argv[1:]))
    be_a_rank(sys.argv[1], Path(sys.argv[2]))
