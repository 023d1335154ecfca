"""Where the time of a rank goes: spans of named activities, one file of lines per rank.

`RUN_DIR/timeline-RANK.jsonl` begins with an object (again after each resumption) that says whose it is and when it was
opened; each further line is a span, `[activity, start, duration]` or `[activity, start, duration, {details}]`, in
seconds since then by a clock that is never set. Clocks of several hosts agree as well as their system time does.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hpcasync.errors import UserError

_WRITE_SECONDS = 2.0


class Timeline:
    """Records the spans of one rank; this class itself records nothing."""

    def span(self, activity: str, **details: object) -> AbstractContextManager[None]:
        """Record what is done within. `details` must be of JSON's types; they are read when the span ends."""
        return nullcontext()

    def add(self, activity: str, start: float, seconds: float, **details: object) -> None:
        """Record what was done from `start` on, by the timeline's clock."""

    def close(self) -> None:
        """Write what has not been written."""


class TimelineFile(Timeline):
    """Spans in a file, written at least every two seconds while there are any: a crash loses no more.

    Where the file cannot be written, a warning says so and recording ends; training goes on.

    Args:
        clock: seconds from any origin; never set.
        opened: system time in seconds at this moment; default: now.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        rank: int,
        role: str,
        index: int,
        host: str,
        clock: Callable[[], float] = time.perf_counter,
        opened: float | None = None,
    ) -> None:
        self._path = timeline_path(run_dir, rank)
        self._clock = clock
        self._lines: list[str] = [""]  # a crash may have left half a line before
        self._is_open = True
        self._origin = self._written = clock()
        facts = {
            "rank": rank,
            "role": role,
            "index": index,
            "host": host,
            "opened": time.time() if opened is None else opened,
        }
        self._lines.append(json.dumps(facts))

    @contextmanager
    def span(self, activity: str, **details: object) -> Iterator[None]:
        """Record what is done within, an exception that ends it included."""
        started = self._clock()
        try:
            yield
        finally:
            self.add(activity, started, self._clock() - started, **details)

    def add(self, activity: str, start: float, seconds: float, **details: object) -> None:
        values = [activity, round(start - self._origin, 6), round(seconds, 6)]
        self._lines.append(json.dumps([*values, details] if details else values, separators=(",", ":")))
        if start + seconds - self._written > _WRITE_SECONDS:
            self._write()
            self._written = start + seconds

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if not self._is_open or not lines:
            return
        try:
            with self._path.open("a") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:
            self._is_open = False
            warnings.warn(f"cannot write {self._path}: {error.strerror}; the timeline ends here", stacklevel=2)


def read_timelines(run_dir: Path) -> Iterator[Iterator[Any]]:
    """What each rank of a run has recorded: objects and spans, as described above.

    Raises:
        UserError: a line is neither; while it is read.
    """
    yield from map(_read, sorted(run_dir.glob("timeline-*.jsonl")))


def _read(path: Path) -> Iterator[Any]:
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            value = json.loads(line)
            if not (isinstance(value, dict) or (isinstance(value, list) and len(value) >= 3)):
                raise ValueError("it has no activity, start and duration")
            yield value
        except ValueError as error:
            # Cut off by a crash: at the end, or before what a resumption appended after an empty line.
            if number < len(lines) and lines[number] and not lines[number].startswith("{"):
                raise UserError(f"{path}, line {number} is no span of a timeline ({error}): remove the line") from error


def timeline_path(run_dir: Path, rank: int) -> Path:
    """The file of a rank."""
    return run_dir / f"timeline-{rank:04d}.jsonl"
