"""Ranks that stay: each training asked of them runs on the first so many of them, without the start of an MPI job.

`warm_ranks.py DIRECTORY PID` looks for request-1.json, request-2.json, … in the directory until one says "stop", or the
process that asks is gone. A request has `num_ranks`, and `arguments` as `hpcasync train` has them. What rank R prints
of the first goes to 1-R.out and 1-R.err, and 1-R.done holds its exit code.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hpcasync.cli.train import train as command
from hpcasync.config.schema import load_config
from hpcasync.errors import UserError
from hpcasync.train.job import run_training
from hpcasync.train.machine.cores import UNBOUND_VARIABLE

POLL_SECONDS = 0.01


def main(directory: Path, pid: int) -> None:
    rank, cores = MPI.COMM_WORLD.rank, os.sched_getaffinity(0)
    standard = os.dup(1), os.dup(2)
    number = 1
    while (request := wait_for(directory / f"request-{number}.json", pid)) is not None:
        if rank < request["num_ranks"]:
            for kind, descriptor in (("out", 1), ("err", 2)):
                with (directory / f"{number}-{rank}.{kind}").open("w") as file:
                    os.dup2(file.fileno(), descriptor)
            exit_code = train(request)
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(standard[0], 1)
            os.dup2(standard[1], 2)
            # What a rank of its own job takes with it when it ends.
            os.sched_setaffinity(0, cores)
            os.environ.pop(UNBOUND_VARIABLE, None)
            done = directory / f"{number}-{rank}.done"
            done.with_suffix(".partial").write_text(str(exit_code))
            done.with_suffix(".partial").rename(done)
            if exit_code == 1:
                MPI.COMM_WORLD.Abort(1)  # the others may wait for it
        number += 1


def wait_for(path: Path, pid: int) -> dict[str, Any] | None:
    """The next request; None if there is none any more."""
    while not path.exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        time.sleep(POLL_SECONDS)
    request: dict[str, Any] = json.loads(path.read_text())
    return None if request.get("stop") else request


def train(request: dict[str, Any]) -> int:
    """Train on the first ranks; the exit code of this one, 1 for an exception."""
    world = MPI.COMM_WORLD
    group = world.group.Incl(range(request["num_ranks"]))
    comm = world.Create_group(group)
    try:
        given = command.make_context("train", request["arguments"]).params
        config = load_config(given["config"], given["overrides"])
        how = {name: given[name] for name in ("resume", "resume_from", "overwrite")}
        return run_training(config, comm=comm, **how)
    except BaseException as error:
        if isinstance(error, UserError) and error.everywhere:  # nobody waits for anybody
            if comm.rank == 0:
                print(f"hpcasync: error: {error}", file=sys.stderr)
            return error.exit_code
        traceback.print_exc()
        return 1
    finally:
        comm.Free()
        group.Free()


main(Path(sys.argv[1]), int(sys.argv[2]))
