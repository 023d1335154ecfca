"""The rank that counts and saves: what is saved when, full disks, and runs that go on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from supervised_run import Run, end_of, names, rejected, update_of

from hpcasync.complete_files import list_complete
from hpcasync.ps.protocol.updates import PushCounts
from hpcasync.runs.files import read_state
from hpcasync.runs.run_state import RunState
from hpcasync.runs.scores import BestScore

pytestmark = pytest.mark.usefixtures("plain_output")


def test_counts_and_schedule(tmp_path: Path) -> None:
    run = Run(tmp_path, schedule={"warmup": 10, "unit": "batches"})
    assert run.supervisor.learning_rate(update_of(1, (0, 1))) == pytest.approx(0.2), "the update's own batches count"
    run.update(3)
    counters = run.supervisor.counters
    assert (counters.num_updates, counters.num_steps, counters.num_batches) == (3, 6, 6)
    assert (counters.target_tokens, counters.source_tokens) == (300, 270)
    assert run.state.ledger.low == 6
    run.finish()
    updates = run.records("update")
    assert [record["num_updates"] for record in updates] == [1, 2, 3]
    assert [record["learning_rate"] for record in updates] == pytest.approx([0.2, 0.4, 0.6])


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
    first.supervisor.after_drop(rejected(8), is_stale=False)
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
    request = run.supervisor.after_update(update_of(1, (0, 1), staleness=(0, 0)), 0.1)
    assert request is not None and request.snapshot and request.checkpoint
    run.supervisor.save_all(request, run.shards)
    run.flat.parameters.add_(1.0)  # training goes on at once
    run.supervisor.finish()
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "snapshots" / request.name / "parameters.safetensors")
    expected = run.flat.named_arrays(before)
    assert all(torch.equal(saved[name], torch.from_numpy(array)) for name, array in expected.items())
    assert names(list_complete(tmp_path / "checkpoints")) == ["u00000001"]


def test_push_counts_survive_a_checkpoint() -> None:
    counts = PushCounts(9, 6, 2)
    counts.staleness.update({0: 4, 3: 2})
    again = PushCounts.from_dict(json.loads(json.dumps(counts.to_dict())))
    assert (again.num_pushed, again.num_applied, again.num_dropped) == (8, 6, 2), "what waited is made anew"
    assert again.staleness == counts.staleness


@pytest.mark.parametrize(
    ("busy", "workers", "num_updates", "is_told"),
    [(0.91, 2, 100, True), (0.91, 2, 99, False), (0.89, 2, 100, False), (0.99, 1, 100, False)],
)
def test_the_end_tells_that_more_servers_would_help(
    tmp_path: Path, busy: float, workers: int, num_updates: int, is_told: bool
) -> None:
    run = Run(tmp_path)
    run.update(num_updates)
    run.finish()
    run.supervisor.report_end({**end_of(run), "servers_busy": busy, "roles": {"servers": 2, "workers": workers}})
    notes = [record["text"] for record in run.records("note")]
    assert [note.startswith("the servers were busy 91% of the time") for note in notes] == [True] * is_told
    assert all("roles.servers=3 helps" in note for note in notes)
