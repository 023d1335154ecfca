"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_LINE_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """What is told how much more was done."""

    def __call__(self, amount: int) -> None:
        """Add to what is done."""


@contextmanager
def progress(description: str, total: int | None, *, unit: str = "pairs", done: int = 0) -> Iterator[Advance]:
    """Show progress on standard error while the context lasts.

    Args:
        description: what is being done.
        total: how much there is to do; None where that is not known.
        unit: what is counted; "bytes" is shown as kB and MB.
        done: what had been done before.
    """
    if sys.stderr.isatty():
        with Progress(*_columns(total, unit), console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total, completed=done)
            yield lambda amount: bar.advance(task, amount)
    else:
        lines = _Lines(description, total, unit, done)
        yield lines.advance
        lines.write(ended=True)


def say(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def _columns(total: int | None, unit: str) -> list[ProgressColumn]:
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
    if unit == "bytes":
        columns += [DownloadColumn(), TransferSpeedColumn()]
    else:
        of_total = "" if total is None else f"/{total:,}"
        columns.append(TextColumn("{task.completed:,}" + f"{of_total} {unit}"))
    return [*columns, TimeRemainingColumn()]


class _Lines:
    def __init__(self, description: str, total: int | None, unit: str, done: int) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done = done
        self._next_seconds = time.monotonic() + _LINE_EVERY_SECONDS

    def advance(self, amount: int) -> None:
        self._done += amount
        if time.monotonic() >= self._next_seconds:
            self.write()

    def write(self, ended: bool = False) -> None:
        self._next_seconds = time.monotonic() + _LINE_EVERY_SECONDS
        share = (
            f" of {self._total:,} {self._unit} ({self._done / self._total:.0%})" if self._total else f" {self._unit}"
        )
        say(f"{self._description}: {self._done:,}{share}{', done' if ended else ''}")
