"""A training job under `hpcasync launch` that runs beside the test: watched, signalled, killed."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest
from forked_ranks import ForkedRanks

from hpcasync.bench.network_hosts import NetworkHosts
from hpcasync.config.schema import Config, load_config
from hpcasync.launch.restarts import newest_checkpoint

# A launch takes five seconds on two idle cores; on busy ones the imports alone take a minute.
_TIMEOUT_SECONDS = 240
# Open MPI's mpirun hands on what begins so.
_MARK_VARIABLE = "HPCASYNC_TEST_JOB"
_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")


class RunningJob:
    """`hpcasync launch OPTIONS -- train CONFIG OVERRIDES`; a context manager that leaves nothing behind.

    Args:
        num_ranks: servers and workers.
        config: file.
        overrides: key=value, and flags of train.
        options: of launch and mpirun.
        log: file for all that the job prints.
        environment: of all processes, beside this one's.
        hosts: where the ranks run, if not here; `launch` runs on the first.
        forked: what the ranks are forks of, if they are not started one by one.
    """

    def __init__(
        self,
        num_ranks: int,
        config: Path,
        *overrides: str,
        options: Sequence[str] = (),
        log: Path,
        environment: Mapping[str, str] | None = None,
        hosts: NetworkHosts | None = None,
        forked: ForkedRanks | None = None,
    ) -> None:
        settings = tuple(word for word in overrides if not word.startswith("--"))
        self.config: Config = load_config(config, settings)
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0
        self._forked = forked if forked is not None and forked.can_be(environment or ()) else None
        hpcasync = [sys.executable, "-m", "hpcasync"] if self._forked is None else self._forked.hpcasync
        command = [*hpcasync, "launch", "-n", str(num_ranks), *options, "--", "train", str(config), *overrides]
        self._mark = uuid.uuid4().hex
        common = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", _MARK_VARIABLE: self._mark}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command if hosts is None else hosts.on(0, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **common, **(environment or {})},
                start_new_session=True,
            )

    def __enter__(self) -> "RunningJob":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)  # ends the job at once
            self.process.wait(_TIMEOUT_SECONDS)

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.config.output_dir

    @property
    def output(self) -> str:
        """What the job has printed."""
        return self._log.read_bytes()[self._offset :].decode(errors="replace")

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Complete records of metrics.jsonl."""
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [record for record in map(json.loads, lines) if record["event"] == kind]

    @property
    def num_updates(self) -> int:
        """As of the last record."""
        return max((record["num_updates"] for record in self.records("update")), default=0)

    @property
    def newest(self) -> str:
        """Name of the newest complete checkpoint; empty if there is none."""
        return newest_checkpoint(self.run_dir)

    def wait_until(self, condition: Callable[[], object], what: str, *, pause: float = 0.02) -> None:
        """Poll a condition every `pause` seconds; fail with the output where the job ends before, or takes too long."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not condition():
            if self.process.poll() is not None and not condition():
                pytest.fail(f"the job ended with {self.process.returncode} before {what}:\n{self.output}")
            if time.monotonic() > deadline:
                pytest.fail(f"waited in vain for {what}:\n{self.output}")
            time.sleep(pause)

    def wait(self, timeout: float = _TIMEOUT_SECONDS) -> int:
        """Wait for the end; returns the exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout:g} s:\n{self.output}")

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        return self.ranks()[number]

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of the ranks that live."""
        found = {}
        for process in self.processes():
            name = next((name for name in _RANK_VARIABLES if name in process.info["environ"]), None)
            if name and "train" in (process.info["cmdline"] or []):
                rank = process if self._forked is None else self._forked.rank(process)
                if rank is not None:
                    found[int(process.info["environ"][name])] = rank
        return found

    def processes(self) -> list[psutil.Process]:
        """All that live of the job, on all hosts that this machine emulates."""
        found = []
        for process in psutil.process_iter(["environ", "cmdline", "status"]):
            is_marked = (process.info["environ"] or {}).get(_MARK_VARIABLE) == self._mark
            if is_marked and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def mpirun(self) -> psutil.Process:
        """The process of mpirun."""
        [process] = [child for child in psutil.Process(self.process.pid).children() if child.name() != "sh"]
        return process


# With the arguments of the class.
StartJob = Callable[..., RunningJob]
