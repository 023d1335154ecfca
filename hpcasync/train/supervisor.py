"""The one rank that counts, logs, saves, and decides when training ends: the coordinator, or rank 0 in sync."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcasync.config import Config
from hpcasync.ps.flat import FlatParameters
from hpcasync.ps.server import SaveRequest
from hpcasync.ps.shard_state import ShardState
from hpcasync.ps.state import PushCounts
from hpcasync.ps.tickets import TicketLedger
from hpcasync.train.counters import Counters
from hpcasync.train.recorder import Recorder
from hpcasync.train.run_files import (
    BackgroundWriter,
    CheckpointDirectory,
    ShardWriter,
    write_snapshot,
    write_text_atomically,
)
from hpcasync.train.schedule import learning_rate
from hpcasync.train.scorer import Scorer
from hpcasync.train.scores import BestScore

# Reduced precision rejects a few gradients of every worker while it finds its scale.
_MOST_REJECTED_IN_A_ROW = 500


@dataclass(frozen=True)
class UpdateReport:
    """An update as the training program sees it, whatever the mode.

    Attributes:
        num_steps: gradients in the update.
        target_tokens, source_tokens: non-padding tokens in the update.
        loss_sum: negative log likelihood summed over the target tokens, in nats.
        tickets: batches in the update.
        staleness: of each gradient, in updates.
    """

    num_steps: int
    target_tokens: int
    source_tokens: int
    loss_sum: float
    tickets: tuple[int, ...]
    staleness: Sequence[int]


@dataclass(frozen=True)
class RunState:
    """Where a run stands: new, or read from a checkpoint."""

    counters: Counters
    ledger: TicketLedger
    best: BestScore
    counts: PushCounts

    @classmethod
    def new(cls, config: Config) -> "RunState":
        """A run that has not begun."""
        return cls(Counters(), TicketLedger(), BestScore(config.validation.metric != "loss"), PushCounts())

    @classmethod
    def from_dict(cls, state: dict[str, Any], best: BestScore) -> "RunState":
        """The inverse of `to_dict`; scores come later than checkpoints and are not part of them."""
        return cls(
            Counters(**state["counters"]),
            TicketLedger(state["tickets"]["low"], state["tickets"]["above"]),
            best,
            PushCounts.from_dict(state["gradients"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        tickets = {"low": self.ledger.low, "above": list(self.ledger.above)}
        return {
            "counters": self.counters.to_dict(),
            "tickets": tickets,
            "gradients": self.counts.to_dict(),
        }


class Supervisor:
    """Counts, logs, saves and decides.

    Args:
        config: of the run.
        run_dir: where to write.
        flat: layout of the parameter vector.
        num_shards: shard files of a checkpoint.
        writer: writes this rank's shard files.
        recorder: where records go.
        state: where the run stands.
        layout: facts about model and corpus that a resumed run must share; stored in every checkpoint.
        clock: seconds of the run's time, from any origin.
    """

    def __init__(
        self,
        config: Config,
        run_dir: Path,
        flat: FlatParameters,
        num_shards: int,
        writer: ShardWriter,
        recorder: Recorder,
        state: RunState,
        layout: dict[str, str],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._flat = flat
        self._writer = writer
        self._recorder = recorder
        self._state = state
        self._layout = layout
        self._checkpoints = CheckpointDirectory(run_dir / "checkpoints", num_shards, config.checkpoint.keep)
        self._snapshot_writer = BackgroundWriter()
        self._scorer = Scorer(run_dir) if config.validation.score else None
        self._clock = clock
        self._started = clock() - state.counters.wall_seconds
        # The newest of each that has been asked for, or that a resumed run has already.
        self._snapshot, self._checkpoint = (
            self._name() if (run_dir / kind / self._name()).is_dir() else "" for kind in ("snapshots", "checkpoints")
        )
        self._num_rejected_in_a_row = 0
        self._stop_reason = ""

    @property
    def counters(self) -> Counters:
        """Progress so far."""
        return self._state.counters

    @property
    def stop_reason(self) -> str:
        """Why training ended, once it has."""
        return self._stop_reason or "end of the corpus"

    def start(self) -> None:
        """Start the clock of the training time. A resumed run may have reached its end already."""
        self._started = self._clock() - self._state.counters.wall_seconds
        self._check_limits()

    def learning_rate(self, report: UpdateReport) -> float:
        """Learning rate of an update that is about to be made."""
        now = self.counters
        ahead = Counters(
            num_updates=now.num_updates + 1,
            num_batches=now.num_batches + len(report.tickets),
            target_tokens=now.target_tokens + report.target_tokens,
        )
        return learning_rate(self._config.optimizer, self._config.schedule, ahead)

    def after_update(self, report: UpdateReport, learning_rate: float) -> SaveRequest | None:
        """Count and log an update that has been published; say what to save of it."""
        counters = self.counters
        counters.num_updates += 1
        counters.num_steps += report.num_steps
        counters.num_batches += len(report.tickets)
        counters.target_tokens += report.target_tokens
        counters.source_tokens += report.source_tokens
        counters.wall_seconds = self._clock() - self._started
        self._state.ledger.add(report.tickets)
        self._num_rejected_in_a_row = 0
        self._recorder.update(counters, report.loss_sum, report.target_tokens, learning_rate, report.staleness)
        self._check_limits()
        if not math.isfinite(report.loss_sum):
            self._stop_reason = self._stop_reason or "the loss is not finite"
        return self._due_request()

    def skip(self, tickets: Iterable[int]) -> None:
        """These batches of one gradient are done with, without an update: it was not finite."""
        self._state.ledger.add(tickets)
        self._recorder.rejected()
        self._num_rejected_in_a_row += 1
        if self._num_rejected_in_a_row >= _MOST_REJECTED_IN_A_ROW:
            self._stop_reason = self._stop_reason or (
                f"training has diverged: {_MOST_REJECTED_IN_A_ROW} gradients in a row were not finite"
            )

    def should_stop(self) -> bool:
        """Whether training is over."""
        self._snapshots_written(self._snapshot_writer.poll())
        self._collect_scores()
        limit = self._config.stop.seconds
        if limit and self._clock() - self._started >= limit:
            self._stop_reason = self._stop_reason or f"stop.seconds={limit:g} reached"
        return bool(self._stop_reason)

    def final_request(self) -> SaveRequest | None:
        """What to save at the end: what has not been saved of the last update already."""
        name = self._name()
        snapshot, checkpoint = name != self._snapshot, name != self._checkpoint
        return self._request(name, snapshot=snapshot, checkpoint=checkpoint) if snapshot or checkpoint else None

    def save_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        """Write a snapshot, in the background, and have it scored then."""
        state = {"version": self.counters.num_updates, **self.counters.to_dict(), "seed": self._config.seed}
        state.update(mode=self._config.mode, configuration_digest=self._config.digest)
        directory, arrays = self._run_dir / "snapshots" / request.name, self._flat.named_arrays(vector)
        self._snapshot_writer.submit(request.name, lambda: write_snapshot(directory, arrays, state))

    def save_all(self, request: SaveRequest, state: ShardState) -> None:
        """Save what was requested from a state that holds the whole vector (sync)."""
        if request.checkpoint:
            self._writer.save_shard(request.name, 0, state.whole, state.state_tensors())
        if request.snapshot:
            averaged = state.parameters if state.ema is None else state.ema
            self.save_snapshot(request, averaged.detach().to("cpu", copy=True))  # training goes on while it is written

    def collect_shards(self) -> None:
        """Complete the checkpoints whose file has been written (sync; else the coordinator hears of them)."""
        for name in self._writer.poll():
            self.shard_saved(name)

    def shard_saved(self, name: str) -> None:
        """A server has completed its shard of a checkpoint."""
        if self._checkpoints.shard_saved(name):
            self._recorder.checkpoint(name)

    def finish(self) -> None:
        """Wait for files and scores (collects this rank's own shard files in sync)."""
        for name in self._writer.wait():
            self.shard_saved(name)
        self._snapshots_written(self._snapshot_writer.wait())
        if self._scorer is not None:
            if self._scorer.num_pending:
                self._recorder.note(f"waiting for {self._scorer.num_pending} snapshot(s) to be scored")
            while self._scorer.num_pending:
                self._collect_scores()
                time.sleep(0.05)
            self._scorer.close()

    def report_end(self, summary: dict[str, Any]) -> None:
        """Tell what came out, and close the records."""
        staleness = summary["staleness"]
        self._recorder.event("end", **summary)
        self._recorder.say(
            f"done ({self.stop_reason}): {summary['num_updates']} updates, {summary['target_tokens']:,} target tokens "
            f"in {summary['wall_seconds']:.0f} s, {summary['target_tokens_per_second']:,.0f} tok/s; staleness mean "
            f"{staleness['mean']:.2f}, max {staleness['max']}; gradients pushed {summary['gradients_pushed']}, applied "
            f"{summary['gradients_applied']}, dropped {summary['gradients_dropped']}"
        )
        self._recorder.say(f"run directory: {self._run_dir}")
        self._recorder.close()

    def _check_limits(self) -> None:
        stop, counters = self._config.stop, self.counters
        if stop.updates and counters.num_updates >= stop.updates:
            self._stop_reason = self._stop_reason or f"stop.updates={stop.updates} reached"
        if stop.tokens and counters.target_tokens >= stop.tokens:
            self._stop_reason = self._stop_reason or f"stop.tokens={stop.tokens} reached"

    def _due_request(self) -> SaveRequest | None:
        every_snapshot, every_checkpoint = self._config.validation.every, self._config.checkpoint.every
        number = self.counters.num_updates
        snapshot = bool(every_snapshot) and number % every_snapshot == 0
        checkpoint = number % every_checkpoint == 0 if every_checkpoint else snapshot
        return self._request(self._name(), snapshot=snapshot, checkpoint=checkpoint) if snapshot or checkpoint else None

    def _request(self, name: str, *, snapshot: bool, checkpoint: bool) -> SaveRequest:
        if snapshot:
            self._snapshot = name
        if checkpoint:
            self._checkpoint = name
            self._checkpoints.begin(name, {**self._state.to_dict(), "layout": self._layout, "mode": self._config.mode})
        return SaveRequest(name, snapshot=snapshot, checkpoint=checkpoint)

    def _name(self) -> str:
        return f"u{self.counters.num_updates:08d}"

    def _snapshots_written(self, names: Iterable[str]) -> None:
        for name in names:
            write_text_atomically(self._run_dir / "last", f"snapshots/{name}\n")
            if self._scorer is not None:
                self._scorer.submit(name)

    def _collect_scores(self) -> None:
        for scores in self._scorer.poll() if self._scorer is not None else []:
            if "error" in scores:
                self._recorder.note(
                    f"{scores['error']}: {scores['num_unscored']} snapshot(s) not scored; training goes on, score them "
                    f"later with `hpcasync evaluate {self._run_dir} --all`"
                )
                continue
            is_best = self._state.best.update(scores["name"], scores[self._config.validation.metric])
            if is_best:
                write_text_atomically(self._run_dir / "best", f"snapshots/{scores['name']}\n")
            self._recorder.validation(scores, is_best=is_best)
            patience = self._config.stop.patience
            if patience and self._state.best.num_stalled >= patience:
                self._stop_reason = self._stop_reason or f"stop.patience={patience} validations without improvement"
