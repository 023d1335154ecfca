"""Records: sums over the updates between two lines, one file of lines, TensorBoard events."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpcasync.config.schedule import StopConfig
from hpcasync.runs.counters import Counters
from hpcasync.train.records.console import TERMINAL_VARIABLE, Console
from hpcasync.train.records.recorder import Recorder
from hpcasync.train.records.trackers import open_trackers


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TERMINAL_VARIABLE, "0")


def make(run_dir: Path, *, every: int = 2, trackers: tuple[str, ...] = ()) -> Recorder:
    console = Console(StopConfig(updates=100), 10)
    opened = open_trackers(trackers, run_dir, "project", {"model": {"dim": 32}, "seed": 1}, console.line)
    return Recorder(run_dir, console, every=every, trackers=opened, batches_per_epoch=10)


def update(recorder: Recorder, number: int, seconds: float, loss: float, tokens: int, stale: Sequence[int]) -> None:
    counters = Counters(num_updates=number, num_batches=3 * number, target_tokens=tokens, wall_seconds=seconds)
    recorder.update(counters, loss, tokens, 0.01, stale)


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_an_update_record_sums_up_the_updates_since_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = make(tmp_path)
    # Loss and tokens of an update, and when it was done.
    update(recorder, 1, 5.0, loss=300.0, tokens=100, stale=[0, 0])
    update(recorder, 2, 7.0, loss=100.0, tokens=100, stale=[1, 3])
    update(recorder, 3, 9.0, loss=200.0, tokens=50, stale=[2])
    update(recorder, 4, 11.0, loss=100.0, tokens=150, stale=[4])
    recorder.close()
    first, second = records(tmp_path, "update")
    assert (first["num_updates"], first["loss"], first["staleness_mean"], first["staleness_max"]) == (2, 2.0, 1.0, 3)
    # The first update's time includes starting up, so that neither it nor its tokens count: 100 tokens in 2 s.
    assert first["target_tokens_per_second"] == 50.0
    assert (second["num_updates"], second["loss"], second["staleness_mean"], second["staleness_max"]) == (
        4,
        1.5,
        3.0,
        4,
    )
    assert second["target_tokens_per_second"] == 50.0
    assert second["data_epoch"] == 1.2 and second["learning_rate"] == 0.01 and second["wall_seconds"] == 11.0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_every_update(tmp_path: Path) -> None:
    recorder = make(tmp_path, every=1)
    update(recorder, 1, 5.0, loss=300.0, tokens=100, stale=[0])
    update(recorder, 2, 6.0, loss=100.0, tokens=100, stale=[0])
    recorder.close()
    assert [record["target_tokens_per_second"] for record in records(tmp_path, "update")] == [20.0, 100.0]


def test_a_run_shorter_than_a_window_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = make(tmp_path, every=50)
    update(recorder, 1, 5.0, loss=300.0, tokens=100, stale=[0])
    update(recorder, 2, 7.0, loss=100.0, tokens=100, stale=[1])
    recorder.complete()
    recorder.complete()  # nothing is left
    recorder.close()
    (record,) = records(tmp_path, "update")
    assert (record["num_updates"], record["loss"], record["target_tokens_per_second"]) == (2, 2.0, 50.0)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_notes_rejections_validations_and_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = make(tmp_path)
    recorder.note("something")
    recorder.rejected()
    recorder.rejected()
    scores = {"name": "u1", "num_updates": 1, "wall_seconds": 1.0, "loss": 1, "perplexity": 2, "bleu": 3, "chrf": 4}
    recorder.validation(scores, is_best=True)
    recorder.checkpoint("u1")
    recorder.close()
    assert [record["text"] for record in records(tmp_path, "note")] == ["something"]
    assert [record["num_rejected"] for record in records(tmp_path, "rejected")] == [1, 2]
    (validation,) = records(tmp_path, "validation")
    assert validation["is_best"] and validation["bleu"] == 3 and validation["name"] == "u1"
    assert [record["name"] for record in records(tmp_path, "checkpoint")] == ["u1"]
    said = capsys.readouterr().out
    assert "something" in said and "rejected (2 so far)" in said and "best so far" in said


def test_a_resumed_run_goes_on_after_the_last_whole_line(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.event("start", number=1)
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "upd')  # a crash
    second = make(tmp_path)
    second.event("start", number=2)
    second.close()
    assert [record["number"] for record in records(tmp_path, "start")] == [1, 2]


def test_tensorboard_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = make(tmp_path, trackers=("tensorboard",))
    update(recorder, 1, 5.0, loss=300.0, tokens=100, stale=[0])
    update(recorder, 2, 6.0, loss=100.0, tokens=100, stale=[2])
    scores = {"name": "u2", "num_updates": 2, "wall_seconds": 1.0, "loss": 1, "perplexity": 2, "bleu": 3, "chrf": 4}
    recorder.validation(scores, is_best=True)
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["train/loss"] == [(2, 2.0)] and scalars["train/staleness_max"] == [(2, 2.0)]
    assert scalars["validation/bleu"] == [(2, 3.0)]


def train_twice(run_dir: Path, tracker: str) -> None:
    """A run that is resumed, and makes its second record again."""
    for numbers in ((1, 2, 3, 4), (3, 4, 5, 6)):
        recorder = make(run_dir, trackers=(tracker,))
        for number in numbers:
            update(recorder, number, float(number), loss=100.0 * number, tokens=100, stale=[0])
        recorder.close()


def test_mlflow_has_one_run_across_resumptions(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    train_twice(tmp_path, "mlflow")
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("project")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == tmp_path.name and run.info.status == "FINISHED"
    assert run.data.params == {"model.dim": "32", "seed": "1"}
    losses = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")}
    assert losses == {2: 1.5, 4: 3.5, 6: 5.5}


def test_wandb_writes_offline_under_one_identity(tmp_path: Path) -> None:
    train_twice(tmp_path, "wandb")
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {path.name for path in files} == {f"run-{identity}.wandb"} and all(path.stat().st_size for path in files)
    assert any(b"train/loss" in path.read_bytes() for path in files)


def test_a_tracker_that_is_not_installed_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "hpcasync.train.records.wandb_run", raising=False)
    recorder = make(tmp_path, trackers=("wandb",))
    recorder.close()
    said = capsys.readouterr().out
    assert "pip install 'hpcasync[wandb]', or take wandb out of logging.trackers" in said.replace(chr(10), " ")
