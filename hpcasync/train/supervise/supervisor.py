"""The one rank that counts, logs, saves, and decides when training ends: the coordinator, or rank 0 in sync."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hpcasync.comm.roles import Roles
from hpcasync.complete_files import remove_partial, write_text_atomically
from hpcasync.config.schema import Config, RunConfig
from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.ps.protocol.updates import Update
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.checkpoints import CheckpointDirectory, ShardWriter
from hpcasync.runs.counters import Counters
from hpcasync.runs.files import explain
from hpcasync.runs.identity import LAYOUT_KEY
from hpcasync.runs.records import read_end
from hpcasync.runs.run_state import RunState
from hpcasync.train.records.recorder import Recorder
from hpcasync.train.records.summary import advice, make_summary
from hpcasync.train.records.versions import collect_versions
from hpcasync.train.supervise import stop_signals
from hpcasync.train.supervise.snapshots import Snapshots
from hpcasync.train.supervise.stopping import Ending, StopRules
from hpcasync.train.supervise.worker_watch import WorkerWatch

# Of the optimizer: Adam's moments, and beside them Muon's momentum; each is as long as all parameters.
_VECTORS_OF_STATE, _WITH_MUON = 2, 3


class Supervisor:
    """Counts, logs, saves and decides.

    Args:
        layout: facts about model and corpus that a resumed run must share; stored in every checkpoint.
        clock: seconds of the run's time, from any origin.
    """

    def __init__(
        self,
        config: RunConfig,
        rate: Callable[[Counters], float],
        flat: FlatParameters,
        writer: ShardWriter,
        recorder: Recorder,
        state: RunState,
        layout: dict[str, str],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._rate = rate
        self._run_dir = run_dir = config.output_dir
        self._flat = flat
        self._writer = writer
        self._recorder = recorder
        self._state = state
        self._layout = layout
        for kind in ("checkpoints", "snapshots"):
            remove_partial(run_dir / kind)
        self._checkpoints = CheckpointDirectory(run_dir / "checkpoints", writer.num_shards, config.checkpoint)
        self._snapshots = Snapshots(config.validation, run_dir, recorder, state.best)
        self._rules = StopRules(config.stop)
        self._failed_checkpoints: set[str] = set()
        self._clock = clock
        # Of a module that has some (`program.buffer_means`): what snapshots hold beside parameters, and checkpoints.
        self.snapshot_buffers: Callable[[], dict[str, np.ndarray]] = flat.frozen_arrays
        self.checkpoint_buffers: Callable[[], dict[str, Any]] = dict
        self.workers_lost: list[dict[str, object]] = []
        self._started = clock() - state.counters.wall_seconds
        self._first_update = state.counters.num_updates
        # The newest of each that has been asked for, or that a resumed run has already.
        self._snapshot, self._checkpoint = (
            self.name if (run_dir / kind / self.name).is_dir() else "" for kind in ("snapshots", "checkpoints")
        )

    @property
    def counters(self) -> Counters:
        return self._state.counters

    @property
    def name(self) -> str:
        """Of the newest version's snapshot and checkpoint."""
        return f"u{self.counters.num_updates:08d}"

    @property
    def ending(self) -> Ending:
        """Why training ended, once it has."""
        return self._rules.ending or self._rules.end_of_corpus(self.counters.num_updates)

    @property
    def stop_reason(self) -> str:
        return self.ending.reason

    @property
    def exit_code(self) -> int:
        """Of all ranks (hpcasync.exit_codes): also not 0 where the last version could not be saved."""
        is_lost = self.name in self._failed_checkpoints | self._snapshots.failed
        return self.ending.exit_code or int(is_lost)

    def start(self) -> None:
        """Start the clock of the training time. A resumed run may have reached its end already."""
        self._started = self._clock() - self._state.counters.wall_seconds
        self._rules.check_counters(self.counters)
        self._rules.check_patience(self._state.best.num_stalled, read_end(self._run_dir, self.counters.num_updates))
        if self.counters.num_updates:
            self._snapshots.resume(self.counters.num_updates)

    def watch(self, roles: Roles) -> WorkerWatch:
        """What reports workers that stop or are slow."""
        return WorkerWatch(self._recorder, roles, self._config.logging.stall, self._clock)

    def report_event(self, kind: str, text: str, **fields: object) -> None:
        self._recorder.event(kind, **fields)
        self._recorder.say(text)

    def learning_rate(self, update: Update) -> float:
        ahead = replace(self.counters)
        ahead.add(update)
        return self._rate(ahead)

    def after_update(self, update: Update, learning_rate: float) -> SaveRequest | None:
        """Count and log an update that has been published; say what to save of it."""
        counters, loss_sum = self.counters, update.loss_sum
        counters.add(update)
        counters.wall_seconds = self._clock() - self._started
        self._state.ledger.add(update.tickets)
        self._recorder.update(counters, loss_sum, update.num_tokens, learning_rate, update.staleness)
        self._rules.after_update(counters, loss_sum, update.num_tokens)
        return self._due_request()

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        """Batches of a gradient that was not finite (it has no tokens), or stale, are done with, without an update.

        Those dropped at the end are drawn again by a resumed run.
        """
        if record.num_tokens == 0:
            self._state.ledger.add(record.tickets)
            self._recorder.rejected()
            self._rules.after_rejected()
        elif is_stale:
            self._state.ledger.add(record.tickets)

    def end_on_request(self) -> None:
        self._rules.end_on_request()

    def report_scores(self, num_updates: int, scores: dict[str, float]) -> None:
        self._recorder.scores(num_updates, scores)

    def lose(self, worker: dict[str, object], *, is_last: bool) -> None:
        """A worker has died: its index, rank and host."""
        self.workers_lost.append(worker)
        if is_last:
            self._rules.lose_all()

    def wait_for_scores(self) -> None:
        """Wait until every snapshot has been scored, or a signal comes, for a run whose end must not depend on when."""
        self._snapshots.wait_for_files()
        if self._snapshots.wait_for_scores(lambda: bool(stop_signals.received())):
            self._rules.check_patience(self._state.best.num_stalled)

    def should_stop(self) -> bool:
        """Whether training is over."""
        if self._snapshots.poll():
            self._rules.check_patience(self._state.best.num_stalled)
        self._rules.check_time(self._clock() - self._started)
        self._rules.check_signals()
        return self._rules.ending is not None

    def final_request(self) -> SaveRequest | None:
        """What to save at the end: what has not been saved of the last update already.

        No snapshot where the run goes on later: it makes none where an undisturbed run would not. Nothing where
        training has diverged: the newest checkpoint stays the last good one.
        """
        if self.ending.is_diverged:
            return None
        name = self.name
        snapshot = name != self._snapshot and not self.ending.is_preempted
        checkpoint = name != self._checkpoint
        return self._request(name, snapshot=snapshot, checkpoint=checkpoint) if snapshot or checkpoint else None

    def save_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        number, every = self.counters.num_updates, self._config.validation.every
        state = {"version": number, **self.counters.to_dict(), "seed": self._config.seed}
        state.update(mode=self._config.mode, configuration_digest=self._config.digest)
        state["is_due"] = bool(every) and number % every == 0  # rather than made because the run ends
        state[LAYOUT_KEY] = self._layout
        self._snapshots.write(request.name, {**self._flat.named_arrays(vector), **self.snapshot_buffers()}, state)

    def save_all(self, request: SaveRequest, state: ShardState) -> None:
        """Save what was requested from a state that holds the whole vector (sync)."""
        if request.checkpoint:
            self._writer.save_shard(request.name, 0, state.whole, state.state_tensors())
        if request.snapshot:
            self.save_snapshot(request, state.averaged.to("cpu", copy=True))  # training goes on while it is written

    def collect_shards(self) -> None:
        """Complete the checkpoints whose file has been written (sync; else the coordinator hears of them)."""
        for saved in self._writer.poll():
            self.shard_saved(saved)

    def shard_saved(self, saved: SavedShard) -> bool:
        """A server has done its part of a checkpoint; returns whether the newest version is saved with that."""
        checkpoint = self._checkpoints.shard_saved(saved, self._snapshots.protected)
        if checkpoint is None:
            return False
        if checkpoint.error:
            self._not_saved(checkpoint.name, checkpoint.error)
            return False
        self._recorder.checkpoint(checkpoint.name)
        if checkpoint.warning:
            self._recorder.note(checkpoint.warning)
        return checkpoint.name == self.name

    def finish(self) -> None:
        """Wait for files and scores (collects this rank's own shard files in sync); a signal ends the wait for scores.

        Scores are not waited for where the run goes on later: it has them made then.
        """
        self._recorder.complete()
        for saved in self._writer.wait():
            self.shard_saved(saved)
        self._snapshots.wait_for_files()
        if self._snapshots.num_unscored:
            self._recorder.note(f"waiting for {self._snapshots.num_unscored} snapshot(s) to be scored")
        self._snapshots.wait_for_scores(lambda: self.ending.is_preempted or bool(stop_signals.received()))
        self._snapshots.end_scoring()
        if self._snapshots.num_unscored and not self.ending.is_preempted:
            self._rules.interrupt(f"{stop_signals.reason()} while the last snapshots were scored")

    def end(self, roles: Roles, **facts: object) -> None:
        """Wait for what is under way, and tell what the run was, and what came out."""
        self.finish()
        summary = make_summary(
            self._config,
            roles,
            self.counters,
            self._state.counts,
            collect_versions(),
            stop_reason=self.stop_reason,
            workers_lost=self.workers_lost,
            exit_code=self.exit_code,
            num_parameters=self._flat.num_trainable,
            **facts,
        )
        self.report_end(summary)

    def report_end(self, summary: dict[str, Any]) -> None:
        """Write RUN_DIR/summary.json, tell what came out, and close the records."""
        self._recorder.end_progress()
        try:
            write_text_atomically(self._run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
        except OSError as error:
            self._recorder.note(f"{self._run_dir}/summary.json was not written: {explain(error)}")
        staleness, unit = summary["staleness"], self._recorder.unit
        self._recorder.event("end", **summary)
        self._recorder.say(
            f"{'stopped' if self.exit_code else 'done'} ({self.stop_reason}): {summary['num_updates']} updates, "
            f"{summary['target_tokens']:,} {unit[1]} in {summary['wall_seconds']:.0f} s, "
            f"{summary['target_tokens_per_second']:,.0f} {unit[0]}/s; staleness mean {staleness['mean']:.2f}, max "
            f"{staleness['max']}; gradients pushed {summary['gradients_pushed']}, applied "
            f"{summary['gradients_applied']}, dropped {summary['gradients_dropped']}"
            + (f"; workers lost: {len(self.workers_lost)}" if self.workers_lost else "")
        )
        if (text := advice(summary, self.counters.num_updates - self._first_update)) is not None:
            self._recorder.note(text)
        if self.exit_code:
            self._recorder.note(f"exit code {self.exit_code}; {self._newest_checkpoint()}")
        self._recorder.say(f"run directory: {self._run_dir}")
        self._recorder.close()

    def _due_request(self) -> SaveRequest | None:
        if self.ending.is_diverged:
            return None
        every_snapshot, every_checkpoint = self._config.validation.every, self._config.checkpoint.every
        number = self.counters.num_updates
        snapshot = bool(every_snapshot) and number % every_snapshot == 0
        checkpoint = number % every_checkpoint == 0 if every_checkpoint else snapshot
        return self._request(self.name, snapshot=snapshot, checkpoint=checkpoint) if snapshot or checkpoint else None

    def _request(self, name: str, *, snapshot: bool, checkpoint: bool) -> SaveRequest | None:
        if snapshot:
            self._snapshot = name
        if checkpoint:
            self._checkpoint = name
            state = {**self._state.to_dict(), "layout": self._layout, "mode": self._config.mode}
            state |= self.checkpoint_buffers()
            error = self._checkpoints.begin(name, state, 4 * self._num_vectors * self._flat.num_elements)
            if error:
                self._not_saved(name, error)
                checkpoint = False
        return SaveRequest(name, snapshot=snapshot, checkpoint=checkpoint) if snapshot or checkpoint else None

    @property
    def _num_vectors(self) -> int:
        """Of a checkpoint."""
        has_muon = isinstance(self._config, Config) and self._config.optimizer.name == "muon"
        return 1 + (_WITH_MUON if has_muon else _VECTORS_OF_STATE) + bool(self._config.optimizer.ema_decay)

    def _not_saved(self, name: str, error: str) -> None:
        self._failed_checkpoints.add(name)
        self._recorder.note(f"the checkpoint {name} was not written: {error}; {self._newest_checkpoint()}")

    def _newest_checkpoint(self) -> str:
        newest = self._checkpoints.newest
        return f"the newest checkpoint is {newest}" if newest else "there is no checkpoint yet"
