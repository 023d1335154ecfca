"""What has to be seen on a GPU: part A is it right, part B is it fast. `check.sh` starts it; README.md explains."""

import json
import multiprocessing
import platform
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

# Of each part; what has not begun by then is left out, and the table says so.
_PART_SECONDS = {"a": 300, "b": 420}
# Of a check, which is ended then; a rehearsal on a CPU costs no lease.
_CHECK_SECONDS = {"cuda": 180, "cpu": 900}


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
@click.argument("out", type=click.Path(path_type=Path))
def main(device: str, parts: str, only: str, out: Path) -> None:
    """Run the checks, leave OUT/results.json, print one table; exit with 1 if one failed."""
    makers = {"a": correctness_checks, "b": speed_checks}
    outcomes: list[Outcome] = []
    signature = _run("", "signature", partial(_signature, device), 60).figures
    (out / "work").mkdir(parents=True, exist_ok=True)
    for part in parts.split():
        started = time.monotonic()
        for name, check in makers[part](device, out / "work"):
            if only not in name:
                continue
            is_late = device == "cuda" and time.monotonic() - started > _PART_SECONDS[part]
            limit = _CHECK_SECONDS[device]
            outcomes.append(Outcome(part, name, "not begun", 0.0) if is_late else _run(part, name, check, limit))
            print(_line(outcomes[-1]), flush=True)
            found = {"signature": signature, "checks": [asdict(outcome) for outcome in outcomes]}
            (out / "results.json").write_text(json.dumps(found, indent=1))
    print("\n" + ", ".join(f"{key} {value}" for key, value in signature.items()))
    for outcome in outcomes:
        print(_line(outcome))
    sys.exit(any(outcome.status != "ok" for outcome in outcomes))


def _run(part: str, name: str, check: Callable[[], dict[str, Any]], limit: float) -> Outcome:
    """In a process of its own: what CUDA does not recover from, a crash or a hang must not keep others from being seen.

    It is forked from this one, which has torch and must never start CUDA.
    """
    started = time.monotonic()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_report, args=(check, sender))
    child.start()
    sender.close()
    status, figures, detail = "FAILED", {}, f"no end after {limit:g} s"
    try:
        if receiver.poll(limit):
            status, figures, detail = receiver.recv()
            child.join(10)
    except EOFError:
        child.join()
        detail = f"the process ended with {child.exitcode}"
    if child.is_alive():
        alive = psutil.Process(child.pid)
        for process in [alive, *alive.children(recursive=True)]:  # ranks are in groups of their own
            with suppress(psutil.NoSuchProcess):
                process.kill()
    return Outcome(part, name, status, time.monotonic() - started, figures, detail)


def _report(check: Callable[[], dict[str, Any]], sender: Connection) -> None:
    try:
        sender.send(("ok", check(), ""))
    except Exception as error:
        traceback.print_exc()
        sender.send(("FAILED", {}, f"{type(error).__name__}: {error}"[-3000:]))


def _line(outcome: Outcome) -> str:
    shown = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                      for key, value in outcome.figures.items())  # fmt: skip
    reason = next(iter(reversed(outcome.detail.strip().splitlines())), "")[:160]
    return f"{outcome.part}  {outcome.name:44}  {outcome.status:9}  {outcome.seconds:6.1f} s  {shown or reason}"


def _signature(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name(0) if device == "cuda" and torch.cuda.is_available() else platform.processor()
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True,
                            cwd=Path(__file__).parent)  # fmt: skip
    return {"device": device, "card": name, "torch": torch.__version__, "cuda": str(torch.version.cuda),
            "commit": commit.stdout.strip() or "?"}  # fmt: skip


if __name__ == "__main__":
    main()
