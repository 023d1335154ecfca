"""The rank that counts, saves and ends training: limits, what is saved when, rejected gradients, scores."""

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcasync.config import Config, parse_config
from hpcasync.exit_codes import DIVERGED, PREEMPTED
from hpcasync.ps.flat import FlatParameters
from hpcasync.ps.observer import SaveRequest
from hpcasync.ps.shard_state import ShardState
from hpcasync.ps.state import PushCounts
from hpcasync.train import snapshots as module
from hpcasync.train import stop_signals
from hpcasync.train.checkpoints import ShardWriter
from hpcasync.train.console import TERMINAL_VARIABLE, Console
from hpcasync.train.optimizers import optimizer_factory
from hpcasync.train.recorder import Recorder
from hpcasync.train.run_files import list_complete, read_state
from hpcasync.train.run_state import RunState, UpdateReport
from hpcasync.train.scorer import Scorer
from hpcasync.train.scores import BestScore
from hpcasync.train.summary import read_validations
from hpcasync.train.supervisor import Supervisor


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TERMINAL_VARIABLE, "0")


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
    return parse_config(values, "test")


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
        recorder = Recorder(directory, Console(self.config.stop, 10), every=1, tensorboard=False, batches_per_epoch=10)
        self.state = RunState.new(self.config) if state is None else state
        self.supervisor = Supervisor(
            self.config, directory, self.flat, num_shards, self.writer, recorder, self.state, {"model": "linear"}, clock
        )
        self.supervisor.start()
        self.requests: list[SaveRequest] = []
        self._next_ticket = self.state.ledger.low

    def update(self, number: int = 1, *, loss: float = 200.0) -> None:
        for _ in range(number):
            tickets = (self._next_ticket, self._next_ticket + 1)
            self._next_ticket += 2
            report = UpdateReport(2, 100, 90, loss, tickets, (0, 1))
            self.save(self.supervisor.after_update(report, self.supervisor.learning_rate(report)))

    def save(self, request: SaveRequest | None) -> None:
        """Save at once, as servers do; all shards are this whole one."""
        if request is None:
            return
        self.requests.append(request)
        if request.checkpoint:
            for index in range(self.num_shards):
                self.writer.save_shard(request.name, index, self.shards.whole, self.shards.state_tensors())
        if request.snapshot:
            self.supervisor.save_snapshot(request, self.flat.parameters.clone())
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


def test_counts_and_schedule(tmp_path: Path) -> None:
    run = Run(tmp_path, schedule={"warmup": 10, "unit": "batches"})
    report = UpdateReport(2, 100, 90, 200.0, (0, 1), (0, 1))
    assert run.supervisor.learning_rate(report) == pytest.approx(0.2), "the update's own batches count"
    run.update(3)
    counters = run.supervisor.counters
    assert (counters.num_updates, counters.num_steps, counters.num_batches) == (3, 6, 6)
    assert (counters.target_tokens, counters.source_tokens) == (300, 270)
    assert run.state.ledger.low == 6
    run.finish()
    updates = run.records("update")
    assert [record["num_updates"] for record in updates] == [1, 2, 3]
    assert [record["learning_rate"] for record in updates] == pytest.approx([0.2, 0.4, 0.6])


@pytest.mark.parametrize(
    ("stop", "num_updates", "reason"),
    [({"updates": 3}, 3, "stop.updates=3 reached"), ({"tokens": 150}, 2, "stop.tokens=150 reached")],
)
def test_limits(tmp_path: Path, stop: dict[str, int], num_updates: int, reason: str) -> None:
    run = Run(tmp_path, stop=stop)
    for number in range(1, num_updates + 1):
        run.update()
        assert run.supervisor.should_stop() == (number == num_updates)
    assert run.supervisor.stop_reason == reason


def test_time_limit(tmp_path: Path) -> None:
    now = [100.0]
    state = RunState.new(make_config(tmp_path))
    state.counters.wall_seconds = 50.0
    run = Run(tmp_path, state=state, clock=lambda: now[0], stop={"seconds": 60})
    assert not run.supervisor.should_stop()
    now[0] = 109.9
    assert not run.supervisor.should_stop()
    now[0] = 110.0
    assert run.supervisor.should_stop() and run.supervisor.stop_reason == "stop.seconds=60 reached"
    run.update()
    assert run.supervisor.counters.wall_seconds == 60.0


def test_the_end_of_the_corpus(tmp_path: Path) -> None:
    run = Run(tmp_path, stop={"epochs": 1})
    run.update(5)
    assert not run.supervisor.should_stop() and run.supervisor.stop_reason == "end of the corpus"


def test_a_loss_that_is_not_finite_ends_training(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.update(loss=math.nan)
    assert run.supervisor.should_stop() and run.supervisor.exit_code == DIVERGED


def test_rejected_gradients_are_skipped_until_there_are_too_many(tmp_path: Path) -> None:
    run = Run(tmp_path, stop={"updates": 1000, "rejected": 3})
    run.supervisor.skip((1,))
    run.supervisor.skip((0,))
    assert run.state.ledger.low == 2, "the batches are done with"
    run._next_ticket = 2
    run.update()
    run.supervisor.skip((4,))
    run.supervisor.skip((5,))
    assert not run.supervisor.should_stop(), "an update lies between"
    run.supervisor.skip((6,))
    assert run.supervisor.should_stop() and run.supervisor.exit_code == DIVERGED
    assert len(run.records("rejected")) == 5


def test_divergence_leaves_the_last_good_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, validation={"score": False, "every": 2})
    run.update(2)
    run.update(2, loss=math.nan)
    assert run.supervisor.should_stop() and run.supervisor.final_request() is None
    run.finish()
    run.supervisor.report_end(end_of(run))
    for kind in ("checkpoints", "snapshots"):
        assert names(list_complete(tmp_path / kind)) == ["u00000002"]
    said = capsys.readouterr().out
    assert "stopped (training has diverged: the loss is not finite)" in said
    assert f"exit code {DIVERGED}; the newest checkpoint is {tmp_path}/checkpoints/u00000002" in said


def end_of(run: Run) -> dict[str, Any]:
    counts = {"gradients_pushed": 0, "gradients_applied": 0, "gradients_dropped": 0, "target_tokens_per_second": 0.0}
    return {**run.supervisor.counters.to_dict(), **counts, "staleness": {"mean": 0.0, "max": 0}}


@pytest.fixture
def signals() -> Iterator[None]:
    stop_signals.note_stop_signals()
    yield
    stop_signals.forget()


def test_a_signal_saves_a_checkpoint_and_no_snapshot(
    tmp_path: Path, signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, validation={"score": False, "every": 2})
    run.update(3)
    assert not run.supervisor.should_stop()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert run.supervisor.should_stop() and run.supervisor.exit_code == PREEMPTED
    run.finish()
    run.supervisor.report_end(end_of(run))
    assert names(list_complete(tmp_path / "checkpoints")) == ["u00000002", "u00000003"]
    assert names(list_complete(tmp_path / "snapshots")) == ["u00000002"]
    said = capsys.readouterr().out
    assert "stopped (preempted by SIGUSR1): 3 updates" in said
    assert f"exit code {PREEMPTED}; the newest checkpoint is {tmp_path}/checkpoints/u00000003" in said


def test_a_signal_before_the_first_update(tmp_path: Path, signals: None) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    run = Run(tmp_path)
    assert run.supervisor.should_stop()
    run.finish()
    state = RunState.from_dict(read_state(tmp_path / "checkpoints" / "u00000000"), BestScore())
    stop_signals.forget()
    second = Run(tmp_path, state=state, stop={"updates": 1})
    assert not second.supervisor.should_stop()
    second.update()
    assert second.supervisor.should_stop() and second.supervisor.exit_code == 0


def test_a_signal_ends_the_wait_for_scores_and_a_resumed_run_has_them_made(
    tmp_path: Path, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Scorer", Scores)
    first = Run(tmp_path, validation={"every": 1}, stop={"updates": 3})
    scorer = first.supervisor._snapshots._scorer
    assert isinstance(scorer, Scores)
    first.update(3)
    scorer.ready.append(scored(1, 5.0, 1.0))
    assert first.supervisor.should_stop() and first.supervisor.exit_code == 0
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    first.finish()
    assert first.supervisor.exit_code == PREEMPTED and scorer.submitted == ["u00000001", "u00000002", "u00000003"]
    first.supervisor.report_end(end_of(first))
    stop_signals.forget()
    (tmp_path / "best").unlink()
    best = BestScore.of_records(read_validations(tmp_path), "bleu", 3)
    state = RunState.from_dict(read_state(tmp_path / "checkpoints" / "u00000003"), best)
    second = Run(tmp_path, state=state, validation={"every": 1}, stop={"updates": 3})
    scorer = second.supervisor._snapshots._scorer
    assert isinstance(scorer, Scores) and scorer.submitted == ["u00000002", "u00000003"]
    assert (tmp_path / "best").read_text() == "snapshots/u00000001\n"
    assert second.supervisor.should_stop() and second.supervisor.final_request() is None
    scorer.ready += [scored(2, 9.0, 1.0), scored(3, 7.0, 1.0)]
    second.finish()
    assert second.supervisor.exit_code == 0 and (tmp_path / "best").read_text() == "snapshots/u00000002\n"


def test_what_cannot_be_saved_is_said_and_training_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, validation={"score": False, "every": 1})
    run.update()
    for kind in ("checkpoints", "snapshots"):
        (tmp_path / kind / "u00000002.partial").touch()  # in the way
        (tmp_path / kind / "u00000002.partial").chmod(0)
    monkey = shutil.rmtree
    try:
        shutil.rmtree = lambda *_arguments, **_options: None  # type: ignore[assignment]
        run.update()
        run.supervisor.should_stop()
    finally:
        shutil.rmtree = monkey
    run.supervisor._snapshots.wait_for_files()
    assert run.supervisor.exit_code == 1, "the last version is lost"
    run.update()
    run.finish()
    assert run.supervisor.exit_code == 0
    assert names(list_complete(tmp_path / "checkpoints")) == ["u00000001", "u00000003"]
    texts = [record["text"] for record in run.records("note")]
    assert texts[0].startswith("the checkpoint u00000002 was not written: File exists; the newest checkpoint is ")
    assert texts[1:] == ["the snapshot u00000002 was not written: File exists; training goes on"]


def test_old_snapshots_are_removed_but_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Scorer", Scores)
    run = Run(tmp_path, validation={"every": 1, "keep": 1}, checkpoint={"keep": 1})
    scorer = run.supervisor._snapshots._scorer
    assert isinstance(scorer, Scores)
    for number, bleu in enumerate([3.0, 9.0, 4.0, 5.0], start=1):
        run.update()
        run.supervisor._snapshots.wait_for_files()
        scorer.ready.append(scored(number, bleu, 1.0))
        run.supervisor.should_stop()
    run.update()
    run.supervisor._snapshots.wait_for_files()
    assert names(list_complete(tmp_path / "snapshots")) == ["u00000002", "u00000005"]
    assert names(list_complete(tmp_path / "checkpoints")) == ["u00000002", "u00000005"]


@pytest.mark.parametrize(
    ("validation_every", "checkpoint_every", "snapshots", "checkpoints"),
    [
        (0, 0, [7], [7]),
        (2, 0, [2, 4, 6, 7], [2, 4, 6, 7]),
        (0, 3, [7], [3, 6, 7]),
        (4, 3, [4, 7], [3, 6, 7]),
        (0, 7, [7], [7]),
        (7, 2, [7], [2, 4, 6, 7]),
        (7, 0, [7], [7]),
    ],
)
@pytest.mark.parametrize("num_shards", [1, 2])
def test_what_is_saved_when_and_never_twice(
    tmp_path: Path,
    validation_every: int,
    checkpoint_every: int,
    snapshots: list[int],
    checkpoints: list[int],
    num_shards: int,
) -> None:
    run = Run(
        tmp_path,
        num_shards=num_shards,
        validation={"score": False, "every": validation_every},
        checkpoint={"every": checkpoint_every, "keep": 10},
    )
    run.update(7)
    run.finish()
    assert [int(request.name[1:]) for request in run.requests if request.snapshot] == snapshots
    assert [int(request.name[1:]) for request in run.requests if request.checkpoint] == checkpoints
    assert names(list_complete(tmp_path / "snapshots")) == [f"u{number:08d}" for number in snapshots]
    assert names(list_complete(tmp_path / "checkpoints")) == [f"u{number:08d}" for number in checkpoints]
    assert [record["name"] for record in run.records("checkpoint")] == [f"u{number:08d}" for number in checkpoints]
    assert (tmp_path / "last").read_text() == f"snapshots/u{snapshots[-1]:08d}\n"
    assert not list(tmp_path.rglob("*.partial"))


def test_snapshots_tell_where_training_stood(tmp_path: Path) -> None:
    run = Run(tmp_path, validation={"score": False, "every": 2})
    run.update(2)
    run.finish()
    state = read_state(tmp_path / "snapshots" / "u00000002")
    assert (state["version"], state["num_updates"], state["target_tokens"], state["seed"]) == (2, 2, 200, 1)
    assert state["mode"] == "async-global" and state["configuration_digest"] == run.config.digest
    assert state["wall_seconds"] == run.supervisor.counters.wall_seconds


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    first = Run(tmp_path, checkpoint={"every": 4})
    first.state.counts.num_pushed = first.state.counts.num_applied = 8
    first.state.counts.staleness.update({0: 4, 1: 4})
    first.update(4)
    first.supervisor.skip((8,))
    first.update(0)
    first.finish()
    state = read_state(tmp_path / "checkpoints" / "u00000004")
    assert state["layout"] == {"model": "linear"} and state["mode"] == "async-global" and state["num_shards"] == 1
    resumed = RunState.from_dict(state, BestScore())
    assert resumed.counters == first.supervisor.counters
    assert resumed.ledger.remaining().next_ticket == 8 and resumed.counts == first.state.counts
    second = Run(tmp_path, state=resumed, stop={"updates": 6})
    second.update(2)
    assert second.supervisor.should_stop() and second.supervisor.counters.target_tokens == 600


def test_a_run_that_had_reached_its_end_is_over_at_once(tmp_path: Path) -> None:
    first = Run(tmp_path, stop={"updates": 2})
    first.update(2)
    first.finish()
    state = RunState.from_dict(read_state(tmp_path / "checkpoints" / "u00000002"), BestScore())
    second = Run(tmp_path, state=state, stop={"updates": 2})
    assert second.supervisor.should_stop() and second.supervisor.final_request() is None


def test_synchronous_saves_are_copies(tmp_path: Path) -> None:
    run = Run(tmp_path, validation={"score": False, "every": 1})
    before = run.flat.parameters.clone()
    report = UpdateReport(2, 100, 90, 200.0, (0, 1), (0, 0))
    request = run.supervisor.after_update(report, 0.1)
    assert request is not None and request.snapshot and request.checkpoint
    run.supervisor.save_all(request, run.shards)
    run.flat.parameters.add_(1.0)  # training goes on at once
    run.supervisor.finish()
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "snapshots" / request.name / "parameters.safetensors")
    expected = run.flat.named_arrays(before)
    assert all(torch.equal(saved[name], torch.from_numpy(array)) for name, array in expected.items())
    assert names(list_complete(tmp_path / "checkpoints")) == ["u00000001"]


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


def test_best_and_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Scorer", Scores)
    run = Run(tmp_path, validation={"every": 1}, stop={"patience": 2})
    scorer = run.supervisor._snapshots._scorer
    assert isinstance(scorer, Scores)
    run.update(4)
    best = tmp_path / "best"
    for number, bleu, is_over, expected in ((1, 10.0, False, 1), (2, 30.0, False, 2), (3, 20.0, False, 2)):
        scorer.ready.append(scored(number, bleu, 1.0))
        assert run.supervisor.should_stop() == is_over
        assert best.read_text() == f"snapshots/u{expected:08d}\n"
    assert scorer.submitted == [f"u{number:08d}" for number in (1, 2, 3, 4)]
    scorer.ready += [{"error": "the scoring process ended with code 1", "num_unscored": 1}]
    assert not run.supervisor.should_stop(), "what was not scored does not count"
    scorer.ready.append(scored(4, 29.9, 1.0))
    assert run.supervisor.should_stop()
    assert run.supervisor.stop_reason == "stop.patience=2 validations without improvement"
    assert [record["is_best"] for record in run.records("validation")] == [True, True, False, False]
    assert "1 snapshot(s) not scored; training goes on" in run.records("note")[0]["text"]


def test_the_best_loss_is_the_lowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Scorer", Scores)
    run = Run(tmp_path, validation={"every": 1, "metric": "loss"})
    scorer = run.supervisor._snapshots._scorer
    assert isinstance(scorer, Scores)
    scorer.ready += [scored(1, 1.0, math.nan), scored(2, 1.0, 3.0), scored(3, 2.0, 2.0), scored(4, 9.0, 2.5)]
    run.supervisor.should_stop()
    assert (tmp_path / "best").read_text() == "snapshots/u00000003\n"


def test_the_best_of_a_resumed_run_comes_from_its_records() -> None:
    records = [scored(10, 5.0, 4.0), scored(20, 8.0, 3.0), scored(30, 7.0, 2.0), scored(40, 9.0, 1.0)]
    best = BestScore.of_records(records, "bleu", 30)
    assert (best.name, best.value, best.num_stalled) == ("u00000020", 8.0, 1)
    assert BestScore.of_records(records, "loss", 30).name == "u00000030"
    # After a crash and a resumption, 20 was scored again: the parameters of that name are now others.
    assert BestScore.of_records([*records, scored(20, 1.0, 9.0)], "bleu", 30).name == "u00000030"
    assert BestScore.of_records([], "bleu", 30) == BestScore()


def test_push_counts_survive_a_checkpoint() -> None:
    counts = PushCounts(9, 6, 2)
    counts.staleness.update({0: 4, 3: 2})
    again = PushCounts.from_dict(json.loads(json.dumps(counts.to_dict())))
    assert (again.num_pushed, again.num_applied, again.num_dropped) == (8, 6, 2), "what waited is made anew"
    assert again.staleness == counts.staleness
