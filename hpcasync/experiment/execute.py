"""Running planned runs as commands, several at a time, each with a log; one that fails does not stop the others."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hpcasync.errors import UserError, describe
from hpcasync.exit_codes import DIVERGED, PREEMPTED
from hpcasync.experiment.plan import PlannedRun
from hpcasync.experiment.schema import Experiment
from hpcasync.experiment.status import Status

_NOT_STARTED = -1
_INTERRUPTED = -2
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_ERROR_MARK = "hpcasync: error:"


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: which.
        code: of the first command that failed; 0 if none did; negative if it was not started, or interrupted.
        log: what its commands printed.
        seconds: time that it took, set-up and scoring included.
    """

    run: PlannedRun
    code: int
    log: Path
    seconds: float

    @property
    def is_failed(self) -> bool:
        """Whether there is no result; that a run has diverged is one."""
        return self.code not in (0, DIVERGED)

    @property
    def is_interrupted(self) -> bool:
        """Whether nothing is wrong with the run: it was told to end, or was not begun."""
        return self.code in (_NOT_STARTED, _INTERRUPTED)

    @property
    def reason(self) -> str:
        """The log's last error, or its last line."""
        if self.code == _NOT_STARTED:
            return "not started"
        if self.code == _INTERRUPTED:
            return "interrupted"
        lines = [line.strip() for line in _tail(self.log).splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR_MARK in line]
        return (errors or lines or ["it printed nothing"])[-1]


def commands(experiment: Experiment, run: PlannedRun, status: Status, num_threads: int | None) -> list[list[str]]:
    """Arguments of `hpcasync` for a run: training or simulation, then scoring if asked for.

    Args:
        status: where it stands.
        num_threads: roles.worker_threads where the configuration does not say, and several runs share the machine.
    """
    scoring = _scoring(experiment, run)
    if status is Status.UNSCORED:
        return scoring
    overrides = list(run.overrides)
    if num_threads is not None and run.config.roles.worker_threads is None:
        overrides.append(f"roles.worker_threads={num_threads}")
    flags = flags_of(status)
    if experiment.run == "simulated":
        first = ["simulate", str(experiment.base), *overrides, *_cluster_options(experiment, run), *flags]
    else:
        train = ["train", str(experiment.base), *overrides, *flags]
        first = ["launch", "-n", str(run.num_ranks), "--", *train]
    return [first, *scoring]


def flags_of(status: Status) -> list[str]:
    """Options of `train` and `simulate` for a run that stands there."""
    return {Status.INTERRUPTED: ["--resume"], Status.BROKEN_OFF: ["--overwrite"]}.get(status, [])


def _scoring(experiment: Experiment, run: PlannedRun) -> list[list[str]]:
    if experiment.evaluate == "none":
        return []
    evaluate = ["evaluate", str(run.config.output_dir), "--split"]
    # A run that did not score its snapshots has no best one yet, and no times to a score.
    every = [*evaluate, "valid", "--all", "--beam", str(run.config.validation.beam)]
    best = [[*evaluate, experiment.evaluate]]
    if run.config.validation.score:
        return best
    return [every] if experiment.evaluate == "valid" else [every, *best]


def _cluster_options(experiment: Experiment, run: PlannedRun) -> list[str]:
    file = [] if experiment.cluster is None else ["--cluster", str(experiment.cluster)]
    return [*(f"cluster.{override}" for override in run.cluster_overrides), *file]


def choose_jobs(jobs: int, runs: Sequence[PlannedRun], num_cores: int) -> int:
    """Runs at a time: `jobs`, or for 0 as many as have a core for each rank."""
    return jobs or max(1, num_cores // max(run.num_ranks for run in runs))


def threads_of(run: PlannedRun, jobs: int, num_cores: int) -> int | None:
    """Threads of a worker when `jobs` runs share the cores; None for one alone, which chooses by itself."""
    return None if jobs == 1 else max(1, num_cores // (jobs * run.num_workers))


class Executor:
    """Runs commands of several runs at a time.

    Args:
        logs: directory for a log per run.
        jobs: runs at a time.
        say: prints a line for people.
    """

    def __init__(self, logs: Path, jobs: int, say: Callable[[str], None]) -> None:
        self._logs = logs
        self._jobs = jobs
        self._say = say
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def run_all(self, work: Sequence[tuple[PlannedRun, list[list[str]]]]) -> list[Outcome]:
        """Run everything and return what became of it, in the order given.

        At SIGINT, SIGTERM or SIGUSR1 the runs that are under way save a checkpoint and end, and no other is started; at
        a second one they end at once.
        """
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {self._logs}: {describe(error, 'name another place')}") from error
        with self._signals(), ThreadPoolExecutor(self._jobs) as pool:
            futures = [
                pool.submit(self._run, f"[{number}/{len(work)}]", run, argvs)
                for number, (run, argvs) in enumerate(work, start=1)
            ]
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]

    def _run(self, number: str, run: PlannedRun, argvs: list[list[str]]) -> Outcome:
        log = self._logs / f"{run.name}.log"
        if self._stopping.is_set():
            return Outcome(run, _NOT_STARTED, log, 0.0)
        self._say(f"{number} {run.name}: {run.num_ranks} ranks, log {log}")
        started = time.perf_counter()
        code = 0
        with log.open("ab") as file:
            for argv in argvs:
                code = self._command(argv, file.fileno())
                if code:
                    # Scoring ends at once and leaves nothing half done; training saves a checkpoint.
                    is_told = self._stopping.is_set() and (argv[0] == "evaluate" or code == PREEMPTED)
                    code = _INTERRUPTED if is_told else code
                    break
        outcome = Outcome(run, code, log, time.perf_counter() - started)
        end = {0: "done", DIVERGED: "diverged", _INTERRUPTED: "interrupted", _NOT_STARTED: "not started"}.get(
            code, f"ended with code {code}: {outcome.reason}"
        )
        self._say(f"{number} {run.name}: {end} after {outcome.seconds:,.0f} s")
        return outcome

    def _command(self, argv: list[str], log: int) -> int:
        os.write(log, f"$ hpcasync {shlex.join(argv)}\n".encode())
        with self._lock:
            if self._stopping.is_set():
                return _NOT_STARTED
            # A session of its own: a Ctrl-C of the terminal reaches this program alone, which then ends the others.
            process = subprocess.Popen(
                [sys.executable, "-m", "hpcasync", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self._processes.add(process)
            if self._stopping.is_set():  # said while it was being started
                process.terminate()
        code = process.wait()
        with self._lock:
            self._processes.discard(process)
        return 128 - code if code < 0 else code

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(_number: int, _frame: FrameType | None) -> None:
            # Not under the lock, which a thread may hold; a process that is missed sees the flag.
            chosen = signal.SIGTERM if self._stopping.is_set() else signal.SIGUSR1
            self._stopping.set()
            for process in list(self._processes):
                if process.poll() is None:
                    process.send_signal(chosen)

        previous = {number: signal.signal(number, stop) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _tail(path: Path, num_bytes: int = 20_000) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - num_bytes))
        return file.read().decode(errors="replace")
