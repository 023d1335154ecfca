"""Checks as a table for people and as JSON for machines."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hpcasync import __version__
from hpcasync.doctor.check import Check, Status, can_run_main_job

# Raised when a key changes its meaning or goes; new keys may come at any time.
SCHEMA_VERSION = 1

_STYLES: dict[Status, str] = {"ok": "green", "limited": "yellow", "missing": "yellow", "broken": "red"}


def as_json(checks: list[Check]) -> str:
    """The checks as a JSON object: schema, version, can_train, checks by name."""
    report = {
        "schema": SCHEMA_VERSION,
        "hpcasync": __version__,
        "can_train": can_run_main_job(checks),
        "checks": {check.name: _to_dict(check) for check in checks},
    }
    return json.dumps(report, indent=2)


def print_table(checks: list[Check], console: Console) -> None:
    """Print the checks, then what each lack disables and what cures it, then the verdict."""
    table = Table("", "status", "found", box=None, pad_edge=False)
    for check in checks:
        style = "red" if check.is_required and not check.is_present else _STYLES[check.status]
        table.add_row(check.name, Text(check.status, style), Text(check.detail))
    console.print(table)
    lacks = [check for check in checks if check.disables]
    if lacks:
        console.print()
    for check in lacks:
        console.print(Text.assemble((check.name, "bold"), f" disables: {check.disables}"))
        console.print(Text(f"  cure: {check.cure}"), soft_wrap=True)
    console.print()
    if can_run_main_job(checks):
        console.print(Text("Asynchronous training on CPU can run.", "green"))
    else:
        names = ", ".join(check.name for check in checks if check.is_required and not check.is_present)
        console.print(Text(f"Asynchronous training cannot run: {names}.", "red"))


def _to_dict(check: Check) -> dict[str, Any]:
    return {
        "status": check.status,
        "present": check.is_present,
        "required": check.is_required,
        "detail": check.detail,
        "disables": check.disables,
        "cure": check.cure,
        "facts": check.facts,
    }
