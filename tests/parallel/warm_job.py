"""An MPI job that outlives the trainings which tests run in it: a second each, where a job of their own takes five."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from runners import RANK_ENVIRONMENT

from hpcasync.launch.here import job_line_here
from hpcasync.launch.mpirun import Launcher
from hpcasync.launch.process import FinishedJob, ParentGuard, start_mpirun

NUM_RANKS = 5
_POLL_SECONDS = 0.01
_CLOSING_SECONDS = 240


class WarmJob:
    """Ranks that wait for trainings (`programs/warm_ranks.py`), started when first needed, and after a failure.

    Args:
        launcher: the mpirun.
        directory: for requests and answers.
    """

    def __init__(self, launcher: Launcher, directory: Path) -> None:
        self._launcher = launcher
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: ParentGuard | None = None
        self._num_starts = 0
        self._number = 0

    def train(self, num_ranks: int, arguments: Sequence[str], *, timeout: float) -> FinishedJob:
        """As `hpcasync train ARGUMENTS` on so many ranks; what they print comes in their order."""
        if self._process is None:
            self._start()
        self._number += 1
        self._ask(num_ranks=num_ranks, arguments=list(arguments))
        ranks, deadline = range(num_ranks), time.monotonic() + timeout
        while not all(self._answer(rank, "done").exists() for rank in ranks):
            if self._has_ended() or time.monotonic() > deadline:
                self._kill()
                said = "\n".join(self._read(rank, kind) for rank in ranks for kind in ("out", "err"))
                pytest.fail(f"the ranks failed or still run after {timeout:g} s:\n{self._log.read_text()}\n{said}")
            time.sleep(_POLL_SECONDS)
        exit_code = max(int(self._read(rank, "done")) for rank in ranks)
        out, err = ("".join(self._read(rank, kind) for rank in ranks) for kind in ("out", "err"))
        return FinishedJob(exit_code, out, err, False, (), time.monotonic())

    def close(self) -> None:
        """End the ranks."""
        if self._process is not None:
            self._number += 1
            self._ask(stop=True)
            try:
                exit_code = self._process.wait(_CLOSING_SECONDS)
            except subprocess.TimeoutExpired:
                exit_code = None
            self._kill()
            assert exit_code == 0, f"exit code {exit_code} of ranks that were to end: {self._log.read_text()}"

    @property
    def _log(self) -> Path:
        return self._directory / f"job-{self._num_starts}.log"

    @property
    def _requests(self) -> Path:
        return self._directory / str(self._num_starts)

    def _start(self) -> None:
        self._num_starts, self._number = self._num_starts + 1, 0
        self._requests.mkdir()
        environment = {**os.environ, **RANK_ENVIRONMENT}
        program = Path(__file__).parent / "programs" / "warm_ranks.py"
        command = [sys.executable, "-m", "mpi4py", str(program), str(self._requests), str(os.getpid())]
        line = job_line_here(NUM_RANKS, command, environment=environment, launcher=self._launcher)
        with self._log.open("w") as log:
            self._process = start_mpirun(
                line.argv,
                env={**environment, **line.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._guard = ParentGuard(self._process.pid)

    def _ask(self, **request: object) -> None:
        path = self._requests / f"request-{self._number}.json"
        path.with_suffix(".partial").write_text(json.dumps(request))
        path.with_suffix(".partial").rename(path)

    def _answer(self, rank: int, kind: str) -> Path:
        return self._requests / f"{self._number}-{rank}.{kind}"

    def _read(self, rank: int, kind: str) -> str:
        path = self._answer(rank, kind)
        return path.read_text() if path.exists() else ""

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)  # mpirun ends its ranks
            try:
                self._process.wait(_CLOSING_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._guard is not None:
            self._guard.close()
        self._process = self._guard = None
