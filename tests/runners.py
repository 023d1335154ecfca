"""Running real MPI jobs and the command line from tests; tests/conftest.py makes fixtures of them."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from forked_ranks import ForkedRanks

from hpcasync.bench.network_hosts import NetworkHosts
from hpcasync.launch.here import job_line_here
from hpcasync.launch.mpirun import JobLine, Launcher
from hpcasync.launch.process import FinishedJob, capture

# `python -m mpi4py`, without the half a second in which the interpreter looks for garbage in all of torch at its end.
MPI4PY = "import atexit, gc; atexit.register(gc.freeze); from mpi4py.run import main; main()"
# Ranks of a test share few cores: more threads would only slow each other down.
RANK_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HPCASYNC_TERMINAL": "0", "PYTHONUNBUFFERED": "1"}
# A launch takes five seconds on two idle cores; on busy ones the imports alone take a minute.
PATIENCE_SECONDS = 240.0


class MpiRunner:
    """Runs real MPI jobs and fails the test where one does not end as it should; pytest shows what it has printed.

    It should end in time, with the exit code that is expected (None: whichever), and leave no process behind.

    Args:
        launcher: the mpirun.
        environment: of all ranks, such as what makes mpi4py load another library.
        hosts: where the ranks run, if not here.
        forked: what the ranks are forks of, if they are not started one by one; Open MPI's.
    """

    def __init__(
        self,
        launcher: Launcher,
        *,
        environment: Mapping[str, str] | None = None,
        hosts: NetworkHosts | None = None,
        forked: ForkedRanks | None = None,
    ) -> None:
        self.launcher = launcher
        self._forked = forked
        self._environment = dict(environment or {})
        self._hosts = hosts

    def __call__(
        self,
        num_ranks: int,
        arguments: Sequence[str | Path],
        *,
        timeout: float = PATIENCE_SECONDS,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        exit_code: int | None = 0,
    ) -> FinishedJob:
        """Run `hpcasync ARGUMENTS` on `num_ranks` ranks."""
        return self._run(num_ranks, ["-m", "hpcasync", *map(str, arguments)], timeout, env, options, exit_code)

    def python(
        self,
        num_ranks: int,
        program: str | Path,
        *arguments: str | Path,
        timeout: float = PATIENCE_SECONDS,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        exit_code: int | None = 0,
    ) -> FinishedJob:
        """Run a Python file (Path) or source text (str) on every rank; an exception on one rank ends them all."""
        what = ["-c", program] if isinstance(program, str) else [str(program)]
        return self._run(num_ranks, ["-c", MPI4PY, *what, *map(str, arguments)], timeout, env, options, exit_code)

    def program(
        self,
        num_ranks: int,
        program: Path,
        *arguments: str | Path,
        timeout: float = PATIENCE_SECONDS,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        exit_code: int | None = 0,
    ) -> FinishedJob:
        """Run a Python file on every rank under plain `python`, which leaves errors to the file."""
        return self._run(num_ranks, [str(program), *map(str, arguments)], timeout, env, options, exit_code)

    def _run(
        self,
        num_ranks: int,
        arguments: Sequence[str],
        timeout: float,
        env: Mapping[str, str] | None,
        options: Sequence[str],
        exit_code: int | None,
    ) -> FinishedJob:
        environment = {**os.environ, **RANK_ENVIRONMENT, **self._environment, **(env or {})}
        if self._hosts is not None:
            options = (*self._hosts.mpirun_options(self.launcher.flavour, num_ranks), *options)
        program = [sys.executable, *arguments]
        line = job_line_here(num_ranks, program, environment=environment, options=options, launcher=self.launcher)
        argv = line.argv
        if self._forked is not None and self._forked.can_be(env or ()):
            argv = (*argv[: -len(program)], self._forked.python, *arguments)
        started = JobLine(argv if self._hosts is None else self._hosts.on(0, argv), line.variables)
        job = capture(started, environment, timeout_seconds=timeout)
        print(f"{line}\n--- stdout\n{job.stdout}\n--- stderr\n{job.stderr}")
        if job.timed_out:
            pytest.fail(f"still running after {timeout:g} s: {line}")
        if job.stragglers:
            pytest.fail(f"processes left behind: {job.stragglers}: {line}")
        if exit_code not in (None, job.returncode):
            pytest.fail(f"exit code {job.returncode}, not {exit_code}: {line}")
        return job


def launch_line(
    forked: ForkedRanks | None, num_ranks: int, program: Path, *arguments: str | Path, options: Sequence[str] = ()
) -> list[str]:
    """`hpcasync launch` of a Python file, whose ranks are forks where there are some."""
    hpcasync, python = [sys.executable, "-m", "hpcasync"], sys.executable
    if forked is not None:
        hpcasync, python = forked.hpcasync, forked.python
    return [*hpcasync, "launch", "-n", str(num_ranks), *options, "--", python, str(program), *map(str, arguments)]


class CliRunner:
    """Runs `hpcasync` as a person does, in a process of its own; if the test fails, pytest shows what was printed.

    Args:
        forked: what the ranks of jobs that it starts are forks of, if they are not started one by one.
    """

    def __init__(self, forked: ForkedRanks | None = None) -> None:
        self._forked = forked

    def __call__(
        self,
        *arguments: str | Path,
        timeout: float = PATIENCE_SECONDS,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        cwd: Path | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run `hpcasync ARGUMENTS` and return its exit code and output."""
        hpcasync = [sys.executable, "-m", "hpcasync"] if self._forked is None else self._forked.hpcasync
        done = subprocess.run(
            [*hpcasync, *map(str, arguments)],
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
        print(f"{done.args}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}")
        return done
