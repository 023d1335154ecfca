"""What has to be seen on a GPU: part A is it right, part B is it fast. `check.sh` starts it; README.md explains."""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from correctness import correctness_checks
from speed import speed_checks

# Of each part; what has not begun by then is left out, and what is under way ended a little later.
_PART_SECONDS = {"a": 300.0, "b": 420.0}
_GRACE_SECONDS = 30.0
# Of a check, which is ended then; a rehearsal on a CPU costs no lease.
_CHECK_SECONDS = {"a": 120.0, "b": 180.0}
_REHEARSED_SECONDS = 900.0
# For processes that are ended to say where they were.
_STACK_SECONDS = 5.0
_DETAIL_BYTES = 8000
# Of the correctness checks that run at once on a GPU; what is timed has the machine to itself.
_AT_ONCE = 4


@dataclass
class Outcome:
    """What came out of a check."""

    part: str
    name: str
    status: str
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    detail: str = ""


Check = tuple[str, Callable[[], dict[str, Any]]]


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
@click.option("--parts", default="a b")
@click.option("--only", default="", help="Checks whose name holds this.")
@click.option("--at-once", type=int, help="Checks of part A that run at once; 4 on a GPU, else 1.")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="What checks leave for each other.")
@click.argument("out", type=click.Path(path_type=Path))
def main(device: str, parts: str, only: str, at_once: int | None, work: Path, out: Path) -> None:
    """Run the checks, leave OUT/results.json, print one table; exit with 1 if one failed."""
    makers = {"a": correctness_checks, "b": speed_checks}
    work.mkdir(parents=True, exist_ok=True)
    signature = next(_run_part("b", [("signature", partial(_signature, device))], device, work, 1)).figures
    outcomes: list[Outcome] = []
    if device == "cuda":
        # While nobody uses the GPU the driver may forget it, and takes seconds to find it for each check.
        multiprocessing.get_context("fork").Process(target=_hold_gpu, daemon=True).start()
    for part in parts.split():
        checks = [(name, check) for name, check in makers[part](device, work) if only in name]
        number = (at_once or (_AT_ONCE if device == "cuda" else 1)) if part == "a" else 1
        for outcome in _run_part(part, checks, device, work, number):
            outcomes.append(outcome)
            print(_line(outcome), flush=True)
            _keep(out / "results.json", signature, outcomes)
    print("\n" + ", ".join(f"{key} {value}" for key, value in signature.items()))
    for outcome in outcomes:
        print(_line(outcome))
    sys.exit(any(outcome.status != "ok" for outcome in outcomes))


def _keep(path: Path, signature: dict[str, str], outcomes: list[Outcome]) -> None:
    """Write what has come out; of checks that were not made now, what came out before stays."""
    made = {(outcome.part, outcome.name) for outcome in outcomes}
    before = json.loads(path.read_text())["checks"] if path.is_file() else []
    checks = [check for check in before if (check["part"], check["name"]) not in made]
    checks += [{**asdict(outcome), "signature": signature} for outcome in outcomes]
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps({"checks": checks}, indent=1))
    whole.replace(path)


def _run_part(part: str, checks: list[Check], device: str, work: Path, at_once: int) -> Iterator[Outcome]:
    """Make the checks of a part, each with its share of the cores, and give each outcome as it comes."""
    cores = sorted(os.sched_getaffinity(0))
    free = [set(cores[place::at_once]) for place in range(at_once)]
    end = time.monotonic() + _PART_SECONDS[part] if device == "cuda" else float("inf")
    waiting, running = list(enumerate(checks)), list[_Running]()
    while waiting or running:
        while waiting and free:
            number, (name, check) = waiting.pop(0)
            left = end - time.monotonic()
            if left <= 0:
                yield Outcome(part, name, "not begun", 0.0)
                continue
            limit = min(_CHECK_SECONDS[part], left + _GRACE_SECONDS) if device == "cuda" else _REHEARSED_SECONDS
            running.append(_Running(part, name, check, limit, work / "logs" / f"{part}-{number}", free.pop()))
        for ended in _Running.wait_for_some(running):
            running.remove(ended)
            yield ended.outcome()
            free.append(ended.cores)


class _Running:
    """A check in a process of its own: after a crash, a hang or what CUDA does not recover from the others go on.

    It is forked from this one, which has torch and must never start CUDA. What it prints, and all that it starts, is in
    `log`.
    """

    def __init__(
        self, part: str, name: str, check: Callable[[], dict[str, Any]], limit: float, log: Path, cores: set[int]
    ) -> None:
        self.cores = cores
        self._part, self._name, self._log, self._limit = part, name, log, limit
        self._started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._receiver, sender = multiprocessing.Pipe(duplex=False)
        self._child: ForkProcess = multiprocessing.get_context("fork").Process(
            target=_report, args=(check, sender, log, cores)
        )
        self._child.start()
        sender.close()

    @staticmethod
    def wait_for_some(running: list["_Running"]) -> list["_Running"]:
        """Those that have said what came out, or have ended, or had their time."""
        first = min((each._started + each._limit for each in running), default=0.0)
        ready = wait([each._receiver for each in running], max(0.0, first - time.monotonic()))
        now = time.monotonic()
        return [each for each in running if each._receiver in ready or now >= each._started + each._limit]

    def outcome(self) -> Outcome:
        """What came out; a check that goes on is ended."""
        status, figures, detail = "FAILED", {}, f"no end after {self._limit:.0f} s"
        try:
            if self._receiver.poll(0):
                status, figures, detail = self._receiver.recv()
                self._child.join(10)
        except EOFError:
            self._child.join()
            detail = f"the process ended with {self._child.exitcode}"
        if self._child.is_alive():
            _end(psutil.Process(self._child.pid))
        if status != "ok":
            with suppress(OSError):
                detail = f"{self._log.read_bytes()[-_DETAIL_BYTES:].decode(errors='replace')}\n{detail}"
        return Outcome(self._part, self._name, status, time.monotonic() - self._started, figures, detail)


def _end(process: psutil.Process) -> None:
    """End a process and its children; those that compute tell first where they are (PYTHONFAULTHANDLER)."""
    with suppress(psutil.NoSuchProcess):
        every = [process, *process.children(recursive=True)]  # ranks are in groups of their own
        for each in every:
            with suppress(psutil.NoSuchProcess):
                if not each.children():
                    each.send_signal(signal.SIGABRT)
        _, left = psutil.wait_procs(every, timeout=_STACK_SECONDS)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _report(check: Callable[[], dict[str, Any]], sender: Connection, log: Path, cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)
    with log.open("wb") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        sender.send(("ok", check(), ""))
    except Exception as error:
        traceback.print_exc()
        sender.send(("FAILED", {}, f"{type(error).__name__}: {error}"[-_DETAIL_BYTES:]))


def _hold_gpu() -> None:
    torch.zeros(1, device="cuda")
    while True:
        time.sleep(3600)


def _line(outcome: Outcome) -> str:
    shown = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                      for key, value in outcome.figures.items())  # fmt: skip
    reason = next(iter(reversed(outcome.detail.strip().splitlines())), "")[:160]
    return f"{outcome.part}  {outcome.name:44}  {outcome.status:9}  {outcome.seconds:6.1f} s  {shown or reason}"


def _signature(device: str) -> dict[str, str]:
    """What the figures are of."""
    found = {"device": device, "card": platform.processor() or platform.machine()}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        found |= {"card": torch.cuda.get_device_name(0), "driver, memory": _said(query)}
    versions = {name: importlib.metadata.version(name) for name in ("triton", "mpi4py")}
    commit = os.environ.get("COMMIT") or _said(["git", "describe", "--always", "--dirty", "--exclude=*"])
    cores = str(len(os.sched_getaffinity(0)))
    found |= {"cores": cores, "python": platform.python_version(), "torch": torch.__version__}
    return found | {"cuda": str(torch.version.cuda), **versions, "commit": commit}


def _said(command: list[str]) -> str:
    with suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip() or "?"
    return "?"


if __name__ == "__main__":
    main()
