"""A supervisor with what it needs, for tests of what it counts, saves and decides."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpcasync.config.schema import Config
from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Arrival, Update
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.checkpoints import ShardWriter
from hpcasync.runs.run_state import RunState
from hpcasync.train.loop.optimizers import optimizer_factory
from hpcasync.train.loop.schedule import rate_of
from hpcasync.train.records.console import Console
from hpcasync.train.records.recorder import Recorder
from hpcasync.train.supervise.scorer import Scorer
from hpcasync.train.supervise.supervisor import Supervisor


class ConfigInPlace(Config):
    """A configuration whose run directory has no name of its own."""

    @property
    def output_dir(self) -> Path:
        return self.run_dir


def make_config(directory: Path, **sections: Any) -> Config:
    values = {
        "data": {"path": "corpus"},
        "stop": {"updates": 1000},
        "validation": {"score": False},
        "schedule": {"warmup": 10},
        "optimizer": {"learning_rate": 1.0},
        "run_dir": str(directory),
        **sections,
    }
    return ConfigInPlace.model_validate(values)


def update_of(
    version: int, tickets: tuple[int, int], loss: float = 200.0, staleness: tuple[int, int] = (0, 1)
) -> Update:
    """Two pushes: 100 target tokens and 90 source tokens together."""
    records = [
        PushRecord(version - 1 - stale, 50, loss / 2, 45, 0.0, (ticket,))
        for ticket, stale in zip(tickets, staleness, strict=True)
    ]
    return Update(version, tuple(Arrival(worker, version, record) for worker, record in enumerate(records)))


def rejected(ticket: int) -> PushRecord:
    """Of a gradient that was not finite."""
    return PushRecord(0, 0, math.nan, 0, 0.0, (ticket,))


class Run:
    """A supervisor with what it needs, and a stand-in for the servers that saves what it asks for."""

    def __init__(
        self,
        directory: Path,
        *,
        num_shards: int = 1,
        state: RunState | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **sections: Any,
    ) -> None:
        self.config = make_config(directory, **sections)
        self.directory = directory
        for kind in ("checkpoints", "snapshots"):
            (directory / kind).mkdir(exist_ok=True)
        torch.manual_seed(1)
        self.flat = FlatParameters(nn.Linear(20, 3))
        self.shards = ShardState(self.flat.parameters, optimizer_factory(self.config.optimizer))
        self.num_shards = num_shards
        self.writer = ShardWriter(directory / "checkpoints", num_shards)
        recorder = Recorder(directory, Console(self.config.stop, 10), every=1, batches_per_epoch=10)
        self.state = RunState.new(self.config) if state is None else state
        self.supervisor = Supervisor(
            self.config,
            rate_of(self.config, 10),
            self.flat,
            self.writer,
            recorder,
            self.state,
            {"model": "linear"},
            clock,
        )
        self.supervisor.start()
        self.requests: list[SaveRequest] = []
        self._next_ticket = self.state.ledger.low

    def update(self, number: int = 1, *, loss: float = 200.0) -> None:
        for _ in range(number):
            tickets = (self._next_ticket, self._next_ticket + 1)
            self._next_ticket += 2
            update = update_of(self.supervisor.counters.num_updates + 1, tickets, loss)
            self.save(self.supervisor.after_update(update, self.supervisor.learning_rate(update)))

    def save(self, request: SaveRequest | None) -> None:
        """Save at once, as servers do; all shards are this whole one. All is on disk then, however slow that is."""
        if request is None:
            return
        self.requests.append(request)
        if request.checkpoint:
            for index in range(self.num_shards):
                self.writer.save_shard(request.name, index, self.shards.whole, self.shards.state_tensors())
        if request.snapshot:
            self.supervisor.save_snapshot(request, self.flat.parameters.clone())
            self.supervisor._snapshots.wait_for_files()
        for saved in self.writer.wait():
            self.supervisor.shard_saved(saved)

    def finish(self) -> None:
        self.save(self.supervisor.final_request())
        self.supervisor.finish()

    def records(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == kind]


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def end_of(run: Run) -> dict[str, Any]:
    counts = {"gradients_pushed": 0, "gradients_applied": 0, "gradients_dropped": 0, "target_tokens_per_second": 0.0}
    ended = {"stop_reason": run.supervisor.stop_reason, "staleness": {"mean": 0.0, "max": 0}}
    return {**run.supervisor.counters.to_dict(), **counts, **ended}


class Scores(Scorer):
    """A scorer that is handed its scores."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self.submitted: list[str] = []
        self.ready: list[dict[str, Any]] = []

    def submit(self, name: str) -> None:
        self.submitted.append(name)

    def poll(self) -> list[dict[str, Any]]:
        ready, self.ready = self.ready, []
        return ready


def scored(number: int, bleu: float, loss: float) -> dict[str, Any]:
    return {
        "name": f"u{number:08d}",
        "num_updates": number,
        "wall_seconds": 1.0,
        "bleu": bleu,
        "loss": loss,
        "perplexity": 1.0,
        "chrf": 1.0,
    }
