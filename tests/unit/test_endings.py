"""How a run ends: limits, signals, gradients that are not finite, divergence."""

import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervised_run import Run, Scores, end_of, make_config, names, rejected, scored

from hpcasync.complete_files import list_complete
from hpcasync.exit_codes import DIVERGED, PREEMPTED
from hpcasync.runs.files import read_state
from hpcasync.runs.records import read_validations
from hpcasync.runs.run_state import RunState
from hpcasync.runs.scores import BestScore
from hpcasync.train.supervise import snapshots as module
from hpcasync.train.supervise import stop_signals

pytestmark = pytest.mark.usefixtures("plain_output")


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
    run.supervisor.after_drop(rejected(1), is_stale=False)
    run.supervisor.after_drop(rejected(0), is_stale=False)
    assert run.state.ledger.low == 2, "the batches are done with"
    run._next_ticket = 2
    run.update()
    run.supervisor.after_drop(rejected(4), is_stale=False)
    run.supervisor.after_drop(rejected(5), is_stale=False)
    assert not run.supervisor.should_stop(), "an update lies between"
    run.supervisor.after_drop(rejected(6), is_stale=False)
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
