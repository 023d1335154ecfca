"""A run that stops and goes on is the run that did not stop; and what cannot go on says why."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from runners import MpiRunner
from tiny_training import Run, TinyCorpus, Trainer

from hpcasync.ps.protocol.tickets import TicketLedger

MIDDLE, END = 10, 20
AT_MIDDLE, AT_END = f"u{MIDDLE:08d}", f"u{END:08d}"


def stop(updates: int) -> str:
    return f"stop={{updates: {updates}}}"


def assert_same_end(resumed: Run, straight: Run) -> None:
    """Losses of all updates, parameters, tickets and counters; fp32, with sums in another order."""
    assert [record["num_updates"] for record in resumed.records("update")] == list(range(1, END + 1))
    np.testing.assert_allclose(resumed.losses, straight.losses, rtol=1e-4)
    rates = [[record["learning_rate"] for record in run.records("update")] for run in (resumed, straight)]
    assert rates[0] == rates[1], "the schedule goes on"
    expected = straight.parameters(AT_END)
    for name, array in resumed.parameters(AT_END).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=2e-5, err_msg=name)
    for key in ("num_updates", "num_steps", "num_batches", "target_tokens", "source_tokens", "gradients_applied"):
        assert resumed.summary[key] == straight.summary[key], key
    assert (
        resumed.summary["gradients_pushed"]
        == resumed.summary["gradients_applied"] + resumed.summary["gradients_dropped"]
    )
    assert sum(resumed.summary["staleness"]["histogram"].values()) == resumed.summary["gradients_applied"]
    assert resumed.state(AT_END)["tickets"] == straight.state(AT_END)["tickets"]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_sync(trainer: Trainer, optimizer: str) -> None:
    common = "mode=sync", f"optimizer.name={optimizer}"
    straight = trainer(2, *common, f"name=straight-{optimizer}", stop(END))
    first = trainer(2, *common, f"name=resumed-{optimizer}", stop(MIDDLE))
    assert first.summary["num_updates"] == MIDDLE
    resumed = trainer(2, *common, f"name=resumed-{optimizer}", stop(END), flags=["--resume"])
    assert f"resuming from {resumed.path}/checkpoints/{AT_MIDDLE}" in resumed.job.stdout
    assert_same_end(resumed, straight)
    expected = straight.parameters(AT_END)
    assert all(np.array_equal(array, expected[name]) for name, array in resumed.parameters(AT_END).items())


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_one_worker_with_another_number_of_servers(trainer: Trainer, optimizer: str) -> None:
    """And other windows; then again from its end, which makes nothing."""
    common = "mode=async", "exchange.pull=applied", f"optimizer.name={optimizer}"
    straight = trainer(2, *common, f"name=straight-{optimizer}", stop(END))
    trainer(3, *common, f"name=resumed-{optimizer}", "roles.servers=2", stop(MIDDLE))
    other = "roles.servers=3", "exchange.window=mapped"
    resumed = trainer(4, *common, f"name=resumed-{optimizer}", *other, stop(END), flags=["--resume"])
    assert {path.name for path in (resumed.path / "checkpoints" / AT_MIDDLE).glob("shard-*")} == {
        f"shard-{index:05d}-of-00002.safetensors" for index in range(2)
    }
    assert_same_end(resumed, straight)

    before = resumed.parameters(AT_END)
    again = trainer(2, *common, f"name=resumed-{optimizer}", stop(END), flags=["--resume"])
    assert again.summary["num_updates"] == END and again.summary["stop_reason"] == f"stop.updates={END} reached"
    assert again.summary["gradients_applied"] == resumed.summary["gradients_applied"]
    after = again.parameters(AT_END)
    assert all(np.array_equal(array, after[name]) for name, array in before.items())


@pytest.mark.parametrize(("mode", "begun", "now"), [("sync", "adam", "auto"), ("async", "muon", "adamw")])
def test_another_optimizer_does_not_take_up_what_muon_or_adam_has_kept(
    trainer: Trainer, mode: str, begun: str, now: str
) -> None:
    """Neither in the run itself nor from another one; with its own optimizer it goes on, of an older version, too."""
    common = f"mode={mode}", f"name={begun}-then-{now}"
    first = trainer(2, *common, f"optimizer.name={begun}", stop(2))
    kept = files_of(first.path)
    other = f"optimizer.name={now}", stop(4)
    runs = (common, ["--resume"]), ((common[0], "name=other"), ["--resume-from", str(first.path)])
    for settings, flags in runs:
        refused = trainer(2, *settings, *other, flags=flags, exit_code=2)
        assert refused.job.stderr.count(f"go on with optimizer.name={begun}") == 1
    assert files_of(first.path) == kept and not (refused.path / "config.yaml").exists()
    if begun == "adam":  # the default of versions that had no other
        config = yaml.safe_load((first.path / "config.yaml").read_text())
        del config["optimizer"]["name"]
        (first.path / "config.yaml").write_text(yaml.safe_dump(config))
    resumed = trainer(2, *common, f"optimizer.name={begun}", stop(4), flags=["--resume"])
    assert resumed.summary["num_updates"] == 4


def test_several_workers_cover_the_corpus_exactly(trainer: Trainer, tiny_corpus: TinyCorpus) -> None:
    """Stopped in the middle of an epoch with pushes under way, and resumed with other ranks to the end of it."""
    overrides = "mode=async-global", "accumulate.global=3", "name=cover", "data.prefetch=true"
    first = trainer(4, *overrides, "stop={updates: 4}")
    state = first.state("u00000004")
    applied = TicketLedger(state["tickets"]["low"], state["tickets"]["above"])
    assert applied.low + len(applied.above) == state["counters"]["num_batches"] == 12
    assert first.summary["gradients_pushed"] == 12 + first.summary["gradients_dropped"]
    resumed = trainer(4, *overrides, "roles.servers=2", "stop={epochs: 2}", flags=["--resume"])
    plan = tiny_corpus.plan(resumed.config)
    num_batches = 2 * plan.num_batches()
    summary = resumed.summary
    assert summary["num_batches"] == num_batches
    assert summary["target_tokens"] == sum(plan.batch(ticket).num_target_tokens for ticket in range(num_batches))
    assert resumed.state(f"u{summary['num_updates']:08d}")["tickets"] == {"low": num_batches, "above": []}
    assert summary["num_updates"] == 4 + -(-(num_batches - 12) // 3)


def test_a_fresh_start_that_is_over_does_not_begin_again(trainer: Trainer) -> None:
    """It is at most a quarter of a run, which is longer when it goes on; what is set anew holds, and is told."""
    common = "mode=async-global", "name=fresh"
    first = trainer(3, *common, "staleness.fresh_start=3", stop(8))
    longer = trainer(4, *common, "staleness.fresh_start=3", stop(12), flags=["--resume"])
    for run, state in ((first, first.state("u00000008")), (longer, longer.state("u00000012"))):
        assert "fresh start: workers wait for the first 2 updates" in run.job.stdout
        assert state["fresh_start"] == {"setting": 3, "updates": 2}
    anew = trainer(3, *common, "staleness.fresh_start=2", stop(16), flags=["--resume"])
    assert "fresh start: workers wait for the first 4 updates" in anew.job.stdout


def test_modes_take_over_from_each_other(trainer: Trainer, tiny_corpus: TinyCorpus) -> None:
    """sync, then async-global, then sync to the end of an epoch, each from the run before it, which stays as it is."""
    first = trainer(2, "mode=sync", "name=modes", stop(4))
    kept = files_of(first.path)
    asynchronous = "mode=async-global", "accumulate.global=3", "name=modes", "roles.servers=2"
    second = trainer(5, *asynchronous, stop(8), flags=["--resume-from", str(first.path)])
    assert f"resuming from {first.path}/checkpoints/u00000004" in second.job.stdout
    assert second.summary["num_updates"] == 8 and second.summary["gradients_applied"] == 4 * 2 + 4 * 3
    flags = ["--resume", "--resume-from", str(second.path)]  # it has no checkpoint of its own yet
    third = trainer(2, "mode=sync", "name=back", "stop={epochs: 2}", flags=flags)
    assert f"resuming from {second.path}/checkpoints/u00000008" in third.job.stdout
    assert files_of(first.path) == kept
    num_batches = 2 * tiny_corpus.plan(third.config).num_batches()
    assert third.summary["num_batches"] == num_batches
    assert third.state(f"u{third.summary['num_updates']:08d}")["tickets"] == {"low": num_batches, "above": []}
    assert [record["num_updates"] for record in third.records("update")] == list(
        range(1, third.summary["num_updates"] + 1)
    ), "the records are those of all three"


def files_of(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of all files."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(directory.rglob("*"))}


def assert_one_message(run: Run, *parts: str) -> None:
    messages = [line for line in run.job.stderr.splitlines() if line.startswith("hpcasync: error")]
    assert len(messages) == 1, run.job.stderr
    assert all(part in messages[0] for part in parts), messages
    assert "Traceback" not in run.job.stderr


def test_what_cannot_go_on(trainer: Trainer) -> None:
    common = "mode=async", "name=refused", stop(2)
    first = trainer(2, *common)
    kept = json.loads((first.path / "summary.json").read_text())
    assert_one_message(trainer(2, *common, exit_code=2), "holds a run already", "--resume", "--overwrite")
    other_model = trainer(2, *common, "model.dim=48", flags=["--resume"], exit_code=2)
    assert_one_message(other_model, "u00000002 was written with another model")
    other_heads = trainer(2, *common, "model.heads=4", flags=["--resume"], exit_code=2)
    assert_one_message(other_heads, "another architecture (transformer, 2 heads, norm pre, now transformer, 4 heads")
    other_batches = trainer(2, *common, "data.batch_tokens=200", flags=["--resume"], exit_code=2)
    assert_one_message(other_batches, "another batches (150 tokens, seed 1, now 200 tokens, seed 1)")
    absent = trainer(2, "mode=async", "name=absent", stop(2), flags=["--resume"], exit_code=2)
    assert_one_message(absent, "--resume: ", "absent-async-seed1 holds no run")
    assert json.loads((first.path / "summary.json").read_text()) == kept, "a refusal changes nothing"
    overwritten = trainer(2, "mode=async", "name=refused", stop(3), flags=["--overwrite"])
    assert overwritten.summary["num_updates"] == 3
    assert [path.name for path in (overwritten.path / "checkpoints").iterdir()] == ["u00000003"]


def test_jobs_that_cannot_start(mpirun: MpiRunner, trainer: Trainer, tmp_path: Path) -> None:
    program = Path(__file__).parent / "programs" / "differing_configuration.py"
    job = mpirun.program(3, program, "train", trainer.path, "mode=async", "name=differs", exit_code=2)
    assert job.stderr.count("hpcasync: error") == 1
    assert "the configuration differs between ranks: rank 0 has" in job.stderr and "rank 1 has" in job.stderr
    alone = trainer(1, "mode=async", "name=alone", exit_code=2)
    assert_one_message(alone, "1 MPI rank cannot hold roles.servers=1", "start 2 ranks or more")
    crowded = trainer(3, "mode=async", "roles.servers=4", "name=crowded", exit_code=2)
    assert_one_message(crowded, "3 MPI ranks cannot hold roles.servers=4", "start 5 ranks or more")
    missing = trainer(2, "mode=async", f"data.path={tmp_path}/none", "name=missing", exit_code=2)
    assert_one_message(missing, "there is no prepared corpus", f"{tmp_path}/none")
    runs = trainer.path.parent / "runs"
    assert not [
        path for path in runs.iterdir() if path.name.split("-")[0] in ("differs", "alone", "crowded", "missing")
    ]


def test_a_run_that_patience_has_ended_stays_ended(trainer: Trainer) -> None:
    # Scored at once, for snapshots are made until the scores are there.
    validation = "validation={every: 10, score: true, beam: 1, max_sentences: 2}"
    settings = "mode=sync", "name=patient", "optimizer.learning_rate=1e-30", validation
    first = trainer(1, *settings, "stop={patience: 1}")
    assert first.summary["stop_reason"] == "stop.patience=1 validations without improvement"
    for _ in range(2):
        again = trainer(1, *settings, "stop={patience: 1}", flags=["--resume"])
        assert again.summary["num_updates"] == first.summary["num_updates"]
        assert again.summary["stop_reason"] == first.summary["stop_reason"]
    further = first.summary["num_updates"] + 3
    more = trainer(1, *settings, f"stop={{patience: 9999, updates: {further}}}", flags=["--resume"])
    assert more.summary["num_updates"] == further
    due = {record["num_updates"]: record["is_due"] for record in more.records("validation")}
    assert all(is_due == (number % 10 == 0) for number, is_due in due.items()) and len(due) > 2
