"""A process that has imported everything and forks for each command: a test of many commands costs no imports.

Reads one JSON object a line: arguments, cwd, environment (names to values, null unsets), sys_path, stdin, stdout and
stderr (paths), timeout. Each is run by a fork as `python -m hpcasync ARGUMENTS`, alone in its MPI job if it starts MPI.
Answers with a line {"returncode": …, "cpu_seconds": …}; a returncode of null: the command had to be killed.
"""

import gc
import json
import os
import signal
import sys
import time
from typing import Any, NoReturn

import mpi4py

mpi4py.rc.initialize = False

from mpi4py import MPI  # noqa: E402

import hpcasync.__main__  # noqa: E402
import hpcasync.cli.data  # noqa: E402
import hpcasync.cli.evaluate  # noqa: E402
import hpcasync.cli.launch  # noqa: E402
import hpcasync.cli.translate  # noqa: E402
import hpcasync.nmt.run_evaluation  # noqa: E402
import hpcasync.train.job  # noqa: E402


def become(request: dict[str, Any]) -> None:
    """Make this fork the process that the request describes."""
    os.setsid()
    os.chdir(request["cwd"])
    for name, value in request["environment"].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sys.path[:0] = request["sys_path"]
    for descriptor, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        opened = os.open(request[name], flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["hpcasync", *request["arguments"]]
    if request["arguments"][0] == "train":
        MPI.Init_thread()


def run(request: dict[str, Any]) -> NoReturn:
    """Be the process of a request, to its end."""
    become(request)
    try:
        hpcasync.__main__.main()
    except SystemExit as end:
        if MPI.Is_initialized():
            raise
        # Without the second that an interpreter takes to unload torch.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    raise AssertionError("main ends the process")


def finish(child: int, timeout: float) -> tuple[int | None, float]:
    """Wait for a fork; returns its exit code, None if it had to be killed, and the CPU time that it took."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    _, _, used = os.wait4(child, 0)
    return None, used.ru_utime + used.ru_stime


def main() -> None:
    """Serve until standard input ends."""
    gc.collect()
    gc.freeze()  # a fork that collects garbage would copy all that it looks at
    # Not by iterating over standard input, whose buffer a fork would share.
    while line := sys.stdin.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request)
        returncode, cpu_seconds = finish(child, request["timeout"])
        print(json.dumps({"returncode": returncode, "cpu_seconds": cpu_seconds}), flush=True)


if __name__ == "__main__":
    main()
