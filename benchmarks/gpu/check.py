"""What has to be seen on a GPU: part A is it right, part B is it fast. `check.sh` starts it; README.md explains."""

import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from correctness import correctness_checks
from speed import speed_checks

# Of each part; what has not begun by then is left out, and the table says so.
_PART_SECONDS = {"a": 300, "b": 420}


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
    for part in parts.split():
        started = time.monotonic()
        for name, check in makers[part](device, out / "work"):
            if only not in name:
                continue
            # A rehearsal on a CPU costs no lease.
            is_late = device == "cuda" and time.monotonic() - started > _PART_SECONDS[part]
            outcomes.append(Outcome(part, name, "not begun", 0.0) if is_late else _run(part, name, check))
            print(_line(outcomes[-1]), flush=True)
            _save(outcomes, device, out / "results.json")
    print("\n" + _signature_line(device))
    for outcome in outcomes:
        print(_line(outcome))
    sys.exit(any(outcome.status != "ok" for outcome in outcomes))


def _run(part: str, name: str, check: Callable[[], dict[str, Any]]) -> Outcome:
    started = time.monotonic()
    status, figures, detail = "ok", {}, ""
    try:
        figures = check()
    except Exception as error:  # whatever is wrong with one must not keep the others from being seen
        status, detail = "FAILED", f"{type(error).__name__}: {error}"[-3000:]
        traceback.print_exc()
    return Outcome(part, name, status, time.monotonic() - started, figures, detail)


def _line(outcome: Outcome) -> str:
    shown = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                      for key, value in outcome.figures.items())  # fmt: skip
    reason = next(iter(reversed(outcome.detail.strip().splitlines())), "")[:160]
    return f"{outcome.part}  {outcome.name:44}  {outcome.status:9}  {outcome.seconds:6.1f} s  {shown or reason}"


def _save(outcomes: list[Outcome], device: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"signature": _signature(device), "checks": [asdict(o) for o in outcomes]}, indent=1))


def _signature(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name(0) if device == "cuda" and torch.cuda.is_available() else platform.processor()
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True,
                            cwd=Path(__file__).parent)  # fmt: skip
    return {"device": device, "card": name, "torch": torch.__version__, "cuda": str(torch.version.cuda),
            "commit": commit.stdout.strip() or "?"}  # fmt: skip


def _signature_line(device: str) -> str:
    return ", ".join(f"{key} {value}" for key, value in _signature(device).items())


if __name__ == "__main__":
    main()
