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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
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
_DETAIL_BYTES = 4000


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
@click.option("--work", required=True, type=click.Path(path_type=Path), help="What checks leave for each other.")
@click.argument("out", type=click.Path(path_type=Path))
def main(device: str, parts: str, only: str, work: Path, out: Path) -> None:
    """Run the checks, leave OUT/results.json, print one table; exit with 1 if one failed."""
    makers = {"a": correctness_checks, "b": speed_checks}
    work.mkdir(parents=True, exist_ok=True)
    log = out / "log"
    signature = _run("", "signature", partial(_signature, device), 60, log).figures
    outcomes: list[Outcome] = []
    if device == "cuda":
        # While nobody uses the GPU the driver may forget it, and takes seconds to find it for each check.
        multiprocessing.get_context("fork").Process(target=_hold_gpu, daemon=True).start()
    for part in parts.split():
        end = time.monotonic() + _PART_SECONDS[part] if device == "cuda" else float("inf")
        for name, check in makers[part](device, work):
            if only not in name:
                continue
            left = end - time.monotonic()
            limit = min(_CHECK_SECONDS[part], left + _GRACE_SECONDS) if device == "cuda" else _REHEARSED_SECONDS
            outcomes.append(_run(part, name, check, limit, log) if left > 0 else Outcome(part, name, "not begun", 0.0))
            print(_line(outcomes[-1]), flush=True)
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


def _run(part: str, name: str, check: Callable[[], dict[str, Any]], limit: float, log: Path) -> Outcome:
    """In a process of its own: what CUDA does not recover from, a crash or a hang must not keep others from being seen.

    It is forked from this one, which has torch and must never start CUDA. What it prints, and all that it starts, is in
    `log`.
    """
    started = time.monotonic()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_report, args=(check, sender, log))
    child.start()
    sender.close()
    status, figures, detail = "FAILED", {}, f"no end after {limit:.0f} s"
    try:
        if receiver.poll(limit):
            status, figures, detail = receiver.recv()
            child.join(10)
    except EOFError:
        child.join()
        detail = f"the process ended with {child.exitcode}"
    if child.is_alive():
        _end(psutil.Process(child.pid))
    if status != "ok":
        with suppress(OSError):
            detail = f"{log.read_bytes()[-_DETAIL_BYTES:].decode(errors='replace')}\n{detail}"
    return Outcome(part, name, status, time.monotonic() - started, figures, detail)


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


def _report(check: Callable[[], dict[str, Any]], sender: Connection, log: Path) -> None:
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
