"""What a person sees of a run: a live line on a terminal, plain lines in a batch log."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hpcasync.config.schedule import StopConfig
from hpcasync.live_line import PROGRESS_MARK, LiveLine

# mpirun gives ranks pseudo-terminals whatever its own output is; `hpcasync launch` knows and says so here.
TERMINAL_VARIABLE = "HPCASYNC_TERMINAL"

_BAR_CELLS = 10
_REFRESH_SECONDS = 1.0


class Console:
    """Lines and progress of a run, on standard output of one rank.

    Args:
        stop: the limits, for the time that is left.
        batches_per_epoch: for the same.
        unit: of what is trained on, short and in full.
    """

    def __init__(
        self, stop: StopConfig, batches_per_epoch: int, unit: tuple[str, str] = ("tok", "target tokens")
    ) -> None:
        self.unit = unit
        self._stop = stop
        self._batches_per_epoch = batches_per_epoch
        self._started_at: tuple[float, float] | None = None
        self._is_terminal = _is_terminal()
        # Without `launch`, which has the terminal otherwise.
        self._live = LiveLine(sys.stdout.buffer) if self._is_terminal and TERMINAL_VARIABLE not in os.environ else None
        self._shown_at = -_REFRESH_SECONDS

    @property
    def is_outdated(self) -> bool:
        """Whether somebody at a terminal has seen no progress for a while."""
        return self._is_terminal and time.monotonic() - self._shown_at >= _REFRESH_SECONDS

    def line(self, text: str) -> None:
        with _readers_may_leave():
            if self._live is None:
                print(text, flush=True)
            else:
                self._live.write(text.encode(errors="replace") + b"\n", sys.stdout.buffer)

    def update(self, fields: dict[str, Any]) -> None:
        done, left_seconds = self._progress(fields)
        loss = "-" if fields["loss"] is None else f"{fields['loss']:.3f}"
        text = (
            f"update {fields['num_updates']:>6}  epoch {fields['data_epoch']:6.2f}  loss {loss:>6}  "
            f"lr {fields['learning_rate']:.2e}  {fields['target_tokens_per_second']:8,.0f} {self.unit[0]}/s  "
            f"staleness {fields['staleness_mean']:4.2f} (max {fields['staleness_max']})  left {_duration(left_seconds)}"
        )
        if not self._is_terminal:
            self.line(text)
            return
        # One line: a terminal too narrow for all of it still shows what matters most.
        text = (
            f"update {fields['num_updates']} loss {loss} {fields['target_tokens_per_second']:,.0f} {self.unit[0]}/s "
            f"left {_duration(left_seconds)} epoch {fields['data_epoch']:.2f} staleness {fields['staleness_mean']:.2f}"
        )
        self._shown_at = time.monotonic()
        bar = round(done * _BAR_CELLS)
        shown = f"[{'#' * bar}{'-' * (_BAR_CELLS - bar)}] {text}".encode()
        with _readers_may_leave():
            if self._live is not None:
                self._live.show(shown)
            else:
                self._mark(shown)

    def validation(self, scores: dict[str, Any], *, is_best: bool) -> None:
        self.line(
            f"validation of update {scores['num_updates']} ({_duration(scores['wall_seconds'])}): "
            f"loss {scores['loss']:.3f}  perplexity {scores['perplexity']:.2f}  "
            f"BLEU {scores['bleu']:.2f}  chrF {scores['chrf']:.2f}"
            f"{f'  COMET {comet:.2f}' if (comet := scores.get('comet')) is not None else ''}"
            f"{'  best so far' if is_best else ''}"
        )

    def close(self) -> None:
        """No progress any more: what is printed from now on stands below the live line."""
        with _readers_may_leave():
            if self._live is not None:
                self._live.close()
            elif self._is_terminal:
                self._mark(b"")

    def _mark(self, progress: bytes) -> None:
        sys.stdout.buffer.write(PROGRESS_MARK + progress + b"\n")
        sys.stdout.buffer.flush()

    def _progress(self, fields: dict[str, Any]) -> tuple[float, float]:
        """Fraction done in [0, 1], and seconds left at the pace so far; the limit that is nearest counts."""
        seconds = fields["wall_seconds"]
        stop = self._stop
        limits = [
            (fields["num_updates"], stop.updates),
            (fields["num_batches"], stop.epochs * self._batches_per_epoch),
            (fields["target_tokens"], stop.tokens),
            (seconds, stop.seconds),
        ]
        done = max((value / limit for value, limit in limits if limit), default=0.0)
        if self._started_at is None:
            self._started_at = seconds, done
        began_seconds, began_done = self._started_at
        if done <= began_done:
            return min(1.0, done), float("inf")
        return min(1.0, done), max(0.0, (1 - done) * (seconds - began_seconds) / (done - began_done))


@contextmanager
def _readers_may_leave() -> Iterator[None]:
    """Training goes on where a pipe, a terminal or a disk takes no more lines: all that matters is in the records."""
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is in buffers, too


def _is_terminal() -> bool:
    if TERMINAL_VARIABLE in os.environ:
        return os.environ[TERMINAL_VARIABLE] == "1"
    under_mpi = any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"))
    return sys.stdout.isatty() and not under_mpi


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
