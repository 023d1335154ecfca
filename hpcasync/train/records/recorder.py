"""Records of a run: metrics.jsonl, what trackers show, and lines for people."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hpcasync.ps.protocol.record import UNKNOWN_LOSS
from hpcasync.runs.counters import Counters
from hpcasync.runs.files import explain
from hpcasync.runs.records import METRICS_FILE
from hpcasync.train.records.console import Console
from hpcasync.train.records.trackers import Tracker


class Recorder:
    """Sends each event to metrics.jsonl, the trackers and the console.

    Updates are summed up over `every` updates: one line, one record.
    """

    def __init__(
        self, run_dir: Path, console: Console, *, every: int, trackers: Sequence[Tracker] = (), batches_per_epoch: int
    ) -> None:
        self._metrics = _open_to_append(run_dir / METRICS_FILE)
        self._console = console
        self.unit = console.unit
        self._every = every
        self.batches_per_epoch = batches_per_epoch
        self._unwritten: set[str] = set()
        self._trackers = trackers
        self._loss_sum = 0.0
        self._tokens = 0
        self._staleness: list[int] = []
        self._num_rejected = 0
        self._window_started: float | None = None
        self._window_tokens = 0
        self._last: dict[str, Any] | None = None

    def event(self, kind: str, **fields: object) -> None:
        """Write one record; numbers that are not finite are null in it."""
        finite = {key: None if _is_not_finite(value) else value for key, value in fields.items()}
        with self._tolerant(METRICS_FILE):
            self._metrics.write(json.dumps({"event": kind, "time": time.time(), **finite}) + "\n")
            self._metrics.flush()

    def note(self, text: str) -> None:
        """A line for people, recorded too."""
        self.event("note", text=text)
        self.say(text)

    def say(self, text: str) -> None:
        """A line for people alone."""
        self._console.line(text)

    def rejected(self) -> None:
        self._num_rejected += 1
        self.event("rejected", num_rejected=self._num_rejected)
        if self._num_rejected.bit_count() == 1:  # 1, 2, 4, …: there may be hundreds
            self._console.line(f"a gradient was not finite and has been rejected ({self._num_rejected} so far)")

    def update(
        self, counters: Counters, loss_sum: float, target_tokens: int, learning_rate: float, staleness: Sequence[int]
    ) -> None:
        """Take note of an update; write a record every so often, and show progress at a terminal more often."""
        if self._window_started is None:
            # The first update's time includes starting up: throughput is counted from its end.
            self._window_started = counters.wall_seconds
        else:
            self._window_tokens += target_tokens
        if loss_sum != UNKNOWN_LOSS:
            self._loss_sum += loss_sum
            self._tokens += target_tokens
        self._staleness.extend(staleness)
        self._last = {**counters.to_dict(), "learning_rate": learning_rate}
        if counters.num_updates % self._every == 0:
            self._write_window()
        elif self._console.is_outdated:
            self._console.update(self._summed_up(self._last))

    def _summed_up(self, last: dict[str, Any]) -> dict[str, Any]:
        """What the updates since the last record came to."""
        assert self._window_started is not None
        seconds = last["wall_seconds"] - self._window_started
        # Of a window of the first update alone nothing better is known.
        mean_speed = last["target_tokens"] / last["wall_seconds"] if last["wall_seconds"] else 0.0
        return {
            **last,
            "data_epoch": last["num_batches"] / self.batches_per_epoch if self.batches_per_epoch else 0.0,
            "loss": self._loss_sum / self._tokens if self._tokens else None,
            "target_tokens_per_second": self._window_tokens / seconds if seconds > 0 else mean_speed,
            "staleness_mean": sum(self._staleness) / max(1, len(self._staleness)),
            "staleness_max": max(self._staleness, default=0),
        }

    def _write_window(self) -> None:
        assert self._last is not None
        fields, self._last = self._summed_up(self._last), None
        self._console.update(fields)
        self.event("update", **fields)
        keys = ("loss", "learning_rate", "target_tokens_per_second", "staleness_mean", "staleness_max")
        self._scalars("train", keys, fields)
        self._loss_sum, self._tokens = 0.0, 0
        self._window_tokens, self._window_started = 0, fields["wall_seconds"]
        self._staleness.clear()

    def complete(self) -> None:
        """Training has ended: sum up the updates since the last record, however few."""
        if self._last is not None:
            self._write_window()

    def validation(self, scores: dict[str, Any], *, is_best: bool) -> None:
        self.event("validation", is_best=is_best, **scores)
        self._console.validation(scores, is_best=is_best)
        self._scalars("validation", ("loss", "perplexity", "bleu", "chrf", "comet"), scores)

    def scores(self, num_updates: int, scores: dict[str, float]) -> None:
        self.event("scores", num_updates=num_updates, **scores)
        told = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
        self._console.line(f"scores of update {num_updates}: {told}")
        self._scalars("scores", list(scores), {**scores, "num_updates": num_updates})

    def checkpoint(self, name: str) -> None:
        self.event("checkpoint", name=name)

    def end_progress(self) -> None:
        """Training is over: results follow."""
        self._console.close()

    def close(self) -> None:
        self._console.close()
        # What a full disk has refused before is refused again.
        for close in (*(tracker.close for tracker in self._trackers), self._metrics.close):
            with suppress(OSError):
                close()

    def _scalars(self, group: str, keys: Sequence[str], values: dict[str, Any]) -> None:
        told = {f"{group}/{key}": values[key] for key in keys if values.get(key) is not None}
        for tracker in self._trackers:
            with self._tolerant(tracker.name):
                tracker.add(told, values["num_updates"])

    @contextmanager
    def _tolerant(self, what: str) -> Iterator[None]:
        """Training goes on where a record cannot be written (full disk); said once until it can be again."""
        try:
            yield
        except OSError as error:
            if what not in self._unwritten:
                self._unwritten.add(what)
                self._console.line(f"{what} cannot be written: {explain(error)}; training goes on")
        else:
            if what in self._unwritten:
                self._unwritten.remove(what)
                self._console.line(f"{what} can be written again")


def _open_to_append(path: Path) -> IO[str]:
    """Open a file of lines, without the half line that a crash may have left at its end."""
    if path.exists():
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
    return path.open("a")


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
