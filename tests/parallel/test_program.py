"""Programs that have joined a job, with real ranks: `hpcasync.join` in all modes, interrupted, and misused."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import ForkedRanks
from runners import MpiRunner, launch_line
from safetensors.torch import load_file

from hpcasync.exit_codes import PREEMPTED

PROGRAM = Path(__file__).parent / "programs" / "joined.py"
EPOCHS_PROGRAM = PROGRAM.with_name("joined_epochs.py")
SAMPLES, BATCHES = 203, 26

APPLIED = {"exchange.pull": "applied", "staleness.lookahead": 0}
IN_ORDER = {"shuffle": False}
STOPPED = {"run": "stopped", "share": {"epochs": 4}}
# Together so long that the event comes before another worker has gone far: it is never more than five batches ahead.
STOPPING = {"signal_at": 12, "together": 17, "pause": 0.02}
KILLED = {"run": "killed", "share": {"epochs": 4}, "settings": {"checkpoint.every": 5}}
EARLY = {"sums_during_backward": True}
# Of all elements: what does not travel at once would come later, and is none.
TOPK = {**APPLIED, "exchange.gradients": "topk", "exchange.topk": 1.0}
SCALED = {"scaled": True, "fused": True, "overflows_at": [2, 5], "together": 10}


def told(job: Any, run: str) -> list[dict[str, Any]]:
    """What each rank has printed of a run."""
    lines = [json.loads(line) for line in job.stdout.splitlines() if line.startswith("{")]
    return [line for line in lines if Path(str(line["run"])).name == run]


def state_of(run_dir: Path) -> dict[str, Any]:
    newest = max(path for path in (run_dir / "checkpoints").glob("u*/state.json") if ".partial" not in str(path))
    state: dict[str, Any] = json.loads(newest.read_text())
    return state


def assert_all_was_trained_once(run_dir: Path, epochs: int) -> None:
    state = state_of(run_dir)
    assert state["tickets"] == {"low": epochs * BATCHES, "above": []}
    assert state["counters"]["target_tokens"] == epochs * SAMPLES
    assert state["counters"]["num_batches"] == epochs * BATCHES


@pytest.fixture(scope="module")
def jobs(mpirun: MpiRunner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, Any]]:
    """Three ranks in turn train asynchronously, and two synchronously, in one directory; each is stopped in the end."""
    directory = tmp_path_factory.mktemp("program")
    stopped = {**STOPPED, "made": STOPPING}
    asynchronous = [
        {"mode": "async-global", "run": "applied", "settings": APPLIED, "share": {"epochs": 4}, "made": IN_ORDER},
        {"mode": "async-global", "run": "topk", "settings": TOPK, "share": {"epochs": 4}, "made": IN_ORDER},
        {"mode": "async", "run": "async", "share": {"epochs": 3}, "made": {"processes": 1}},
        {"mode": "async-global", "accumulate": 2, "run": "gathered", "share": {"epochs": 2}},
        {"mode": "async-global", "accumulate": 2, "run": "nested", "share": {"epochs": 3}, "made": {"nested": True}},
        {"mode": "async-global", "run": "left", "share": {"epochs": 100}, "made": {"break_at": 9}},
        {"mode": "async-global", "run": "scaled", "share": {"epochs": 4}, "made": SCALED},
        {"mode": "async-global", "run": "updates", "share": {"updates": 7}, "made": {"optimizer": "SGD"}},
        {"mode": "async-global", "run": "whole", "share": {"epochs": 3}, "made": {"stream": "whole", "processes": 1}},
        {"mode": "async", "run": "split", "share": {"epochs": 3}, "made": {"stream": "split"}},
        {"mode": "async-global", **stopped},
    ]
    synchronous = [
        {"mode": "sync", "run": "sync", "share": {"epochs": 4}, "made": IN_ORDER},
        {"mode": "sync", "run": "sync-early", "settings": EARLY, "share": {"epochs": 4}, "made": IN_ORDER},
        {"mode": "sync", "accumulate": 3, "run": "sync-gathered", "share": {"epochs": 1}},
        # 13 batches of an epoch for each: the seventh step takes one of the next epoch.
        {"mode": "sync", "accumulate": 2, "run": "sync-nested", "share": {"epochs": 3}, "made": {"nested": True}},
        {"mode": "sync", "run": "sync-left", "share": {"epochs": 100}, "made": {"break_at": 9}},
        {"mode": "sync", "run": "sync-whole", "share": {"epochs": 2}, "made": {"stream": "whole"}},
        {"mode": "sync", "run": "sync-split", "share": {"epochs": 2}, "made": {"stream": "split"}},
        {"mode": "sync", **stopped, "run": "sync-stopped"},
    ]
    three = mpirun.python(3, PROGRAM, directory, json.dumps(asynchronous), timeout=240, exit_code=PREEMPTED)
    two = mpirun.python(2, PROGRAM, directory, json.dumps(synchronous), timeout=240, exit_code=PREEMPTED)
    yield directory, three, two


def test_every_rank_has_the_last_version(jobs: tuple[Path, Any, Any]) -> None:
    _, three, two = jobs
    for job, runs, num_ranks in (
        (three, ("applied", "async", "gathered", "left", "scaled", "updates"), 3),
        (two, ("sync",), 2),
    ):
        for run in runs:
            ranks = told(job, run)
            assert len(ranks) == num_ranks
            for other in ranks[1:]:
                assert other["parameters"] == ranks[0]["parameters"], run
                assert other["mean"] == ranks[0]["mean"] and other["newest"] == ranks[0]["newest"], run


def test_waiting_for_every_update_is_synchronous_training(jobs: tuple[Path, Any, Any]) -> None:
    """Groups, scheduler, weights of uneven batches and the clipping are the same, whoever makes the steps."""
    _, three, two = jobs
    theirs = told(two, "sync")[0]
    for ours in (told(three, "applied")[0], told(three, "topk")[0]):
        for mine, other in zip(ours["parameters"], theirs["parameters"], strict=True):
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(other), rtol=1e-3, atol=1e-4)
        assert ours["accuracy"] > 0.9


def test_sums_during_backward_are_the_same(jobs: tuple[Path, Any, Any]) -> None:
    directory, _, two = jobs
    early, late = told(two, "sync-early")[0], told(two, "sync")[0]
    assert early["parameters"] == late["parameters"] and early["mean"] == late["mean"]
    sums = [json.loads(line) for line in (directory / "sync-early" / "metrics.jsonl").read_text().splitlines()]
    assert ["during backward" in record["by"] for record in sums if record["event"] == "sums"] == [True]


def test_every_sample_is_trained_on_once_an_epoch(jobs: tuple[Path, Any, Any]) -> None:
    directory, three, two = jobs
    for run, epochs, job in (
        ("applied", 4, three),
        ("async", 3, three),
        ("gathered", 2, three),
        ("nested", 3, three),
        ("whole", 3, three),
        ("split", 3, three),
        ("sync-whole", 2, two),
        ("sync-split", 2, two),
        ("sync", 4, two),
        ("sync-nested", 3, two),
    ):
        assert_all_was_trained_once(directory / run, epochs)
        assert sum(rank["seen"] for rank in told(job, run)) == epochs * SAMPLES
        assert all(rank["seen"] == 0 for rank in told(job, run) if rank["server"])
    assert_all_was_trained_once(directory / "sync-gathered", 1)


def test_gradients_that_overflow_are_left_out(jobs: tuple[Path, Any, Any]) -> None:
    """Two of each of two workers, of eight samples: GradScaler makes no step with them, and they are done with."""
    state = state_of(jobs[0] / "scaled")
    assert state["tickets"] == {"low": 4 * BATCHES, "above": []}
    assert state["counters"]["target_tokens"] == 4 * SAMPLES - 4 * 8
    assert state["gradients"]["num_dropped"] == 4


def test_a_break_ends_training_for_all(jobs: tuple[Path, Any, Any]) -> None:
    directory, _, _ = jobs
    for run in ("left", "sync-left"):
        assert 0 < state_of(directory / run)["tickets"]["low"] < 100 * BATCHES
        assert "the program asked for it" in (directory / run / "summary.json").read_text()
    assert state_of(directory / "updates")["counters"]["num_updates"] == 7


def test_a_snapshot_holds_parameters_and_buffers(jobs: tuple[Path, Any, Any]) -> None:
    directory, three, _ = jobs
    tensors = load_file(directory / "applied" / "snapshots" / "u00000052" / "parameters.safetensors")
    assert "output.weight" in tensors and "hidden.weight" in tensors and "tied.weight" not in tensors
    assert tensors["frozen.weight"].flatten().tolist() in told(three, "applied")[0]["parameters"]
    assert int(tensors["norm.num_batches_tracked"]) > 0
    # What the workers told last; at the end they told all.
    torch.testing.assert_close(tensors["norm.running_mean"], torch.tensor(told(three, "applied")[0]["mean"]))
    # Of bfloat16; files hold float32.
    newest = torch.tensor(told(three, "applied")[0]["newest"])
    torch.testing.assert_close(tensors["newest"], newest, rtol=0.01, atol=0.01)


def test_scores_and_losses_are_recorded(jobs: tuple[Path, Any, Any]) -> None:
    directory, _, _ = jobs
    for run in ("applied", "sync"):
        records = [json.loads(line) for line in (directory / run / "metrics.jsonl").read_text().splitlines()]
        scores = [record for record in records if record["event"] == "scores"]
        assert scores and all(score["quality"] == score["num_updates"] for score in scores)
        updates = [record for record in records if record["event"] == "update"]
        assert 0 < updates[-1]["loss"] < 1.5


@pytest.mark.parametrize(
    ("mode", "num_ranks", "prefix", "streams"), [("async-global", 3, "", ("whole", "split")), ("sync", 2, "sync-", ())]
)
def test_a_run_that_is_stopped_or_killed_goes_on_from_its_last_checkpoint(
    jobs: tuple[Path, Any, Any], mpirun: MpiRunner, mode: str, num_ranks: int, prefix: str, streams: tuple[str, ...]
) -> None:
    directory, three, two = jobs
    stopped, killed = ({"mode": mode, **case, "run": f"{prefix}{case['run']}"} for case in (STOPPED, KILLED))
    streamed = [{**stopped, "run": f"stopped-{stream}", "made": {"stream": stream}} for stream in streams]
    for stream, case in zip(streams, streamed, strict=True):
        part = {**case, "made": {**STOPPING, "stream": stream}}
        job = mpirun.python(num_ranks, PROGRAM, directory, json.dumps([part]), exit_code=PREEMPTED)
        assert not told(job, str(case["run"]))
    dying = {**killed, "made": {"kill_at": 25, "together": 30, "pause": 0.02}}
    job = mpirun.python(num_ranks, PROGRAM, directory, json.dumps([dying]), exit_code=None)
    assert job.returncode not in (0, PREEMPTED), job.stderr
    cases = [stopped, killed, *streamed]
    for case in cases:
        assert not told(three, str(case["run"])) + told(two, str(case["run"])), "the program ends where it is stopped"
        # At the latest a multiple of five; the coordinator may have saved when mpirun told it to end.
        least = 5 if case is killed else 1
        assert least <= state_of(directory / str(case["run"]))["counters"]["num_updates"] < 4 * BATCHES
    resumed = mpirun.python(num_ranks, PROGRAM, directory, json.dumps(cases))
    assert resumed.stdout.count("resuming from") == len(cases)
    for case in cases:
        run = str(case["run"])
        assert_all_was_trained_once(directory / run, 4)
        assert min(rank["tracked"] for rank in told(resumed, run)) > 0
        # Nobody waits for fresh gradients of a stream.
        assert told(resumed, run)[0]["accuracy"] > (0.8 if case in streamed else 0.9)


def test_launch_lets_a_program_save(tmp_path: Path, forked: ForkedRanks | None) -> None:
    # A scheduler with steps for as long as it takes until this test sees the first records.
    made = {"pause": 0.02, "total": 1_000_000}
    case = {"mode": "async-global", "run": "run", "share": {"epochs": 1000}, "made": made}
    command = launch_line(forked, 3, PROGRAM, tmp_path, json.dumps([case]))
    records = tmp_path / "run" / "metrics.jsonl"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as job:
        while job.poll() is None and not (records.exists() and '"update"' in records.read_text()):
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)
        said, _ = job.communicate()
    assert job.returncode == PREEMPTED, said
    assert "stopped (preempted by SIGTERM)" in said
    assert state_of(tmp_path / "run")["counters"]["num_updates"] > 0


@pytest.mark.slow
def test_compiled_modules(mpirun: MpiRunner, tmp_path: Path) -> None:
    case = {"mode": "async-global", "run": "run", "share": {"epochs": 4}, "made": {"compiled": True}}
    job = mpirun.python(3, PROGRAM, tmp_path, json.dumps([case]), timeout=300)
    assert told(job, "run")[0]["accuracy"] > 0.9


def test_a_stopped_run_on_one_rank_ends_as_one_that_was_not(mpirun: MpiRunner, tmp_path: Path) -> None:
    whole = {"mode": "async-global", "run": "whole", "share": {"epochs": 3}}
    part = {**whole, "run": "part", "made": {"signal_at": 20}}
    job = mpirun.python(1, PROGRAM, tmp_path, json.dumps([whole, part]), exit_code=PREEMPTED)
    assert 0 < state_of(tmp_path / "part")["counters"]["num_updates"] < 3 * BATCHES
    part["made"] = {}
    rest = mpirun.python(1, PROGRAM, tmp_path, json.dumps([part]))
    assert_all_was_trained_once(tmp_path / "part", 3)
    expected, found = told(job, "whole")[0], told(rest, "part")[0]
    assert found["parameters"] == expected["parameters"] and found["mean"] == expected["mean"]


def test_a_program_that_ends_in_the_loop_has_left_it(mpirun: MpiRunner, tmp_path: Path) -> None:
    """All is saved, and the others' loops end; the exit code is the program's own."""
    for num_ranks, code, loops in ((3, 0, {}), (3, 7, {}), (1, 0, {}), (3, 8, {"nested": True})):
        case = {"mode": "async-global", "run": f"{num_ranks}-{code}", "share": {"epochs": 100}}
        # The other worker may have had most of an epoch before.
        case["made"] = {"exit_at": 9, "code": code, "total": 100 * BATCHES, **loops}
        job = mpirun.program(num_ranks, PROGRAM, tmp_path, json.dumps([case]), exit_code=code)
        assert "done (the program asked for it)" in job.stdout
        assert 0 < state_of(tmp_path / str(case["run"]))["tickets"]["low"] < 100 * BATCHES


def test_a_program_that_ends_before_the_loop(mpirun: MpiRunner, tmp_path: Path) -> None:
    """On all ranks it just ends; on one of them the others are told, and wait for nobody."""
    case = {"mode": "async-global", "run": "run", "share": {"epochs": 1}, "made": {"leaves": "all"}}
    job = mpirun.program(3, PROGRAM, tmp_path, json.dumps([case]))
    assert not job.stderr and not (tmp_path / "run").exists()
    case["made"] = {"leaves": "server"}
    job = mpirun.program(3, PROGRAM, tmp_path, json.dumps([case]), exit_code=2)
    assert job.stderr.count("rank 0, a server, has ended its program before the job's loop") == 1


@pytest.mark.parametrize(("mode", "num_ranks"), [("async-global", 3), ("sync", 2), ("async-global", 1)])
def test_a_program_records_after_each_epoch_and_after_the_last(
    mpirun: MpiRunner, tmp_path: Path, mode: str, num_ranks: int
) -> None:
    """Also where nothing is left to train; after the loop all ranks know the version that they have."""
    num_updates = -(-3 * 21 // max(1, num_ranks - (mode != "sync")))
    for epochs, again in ((3, 0), (1, 1)):
        job = mpirun.program(num_ranks, EPOCHS_PROGRAM, tmp_path / "run", mode, "3")
        lines = [json.loads(line) for line in job.stdout.splitlines() if line.startswith("{")]
        evaluated = [line for line in lines if "epoch" in line]
        assert [line["epoch"] for line in evaluated] == list(range(epochs))
        assert evaluated[-1]["valid"] < 0.1 * evaluated[0]["valid"] or again
        last = [line for line in lines if "last" in line]
        assert len(last) == num_ranks and {line["last"] for line in last} == {num_updates}
        assert len({line["sum"] for line in last}) == 1
        records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        recorded = [(record["num_updates"], record["valid"]) for record in records if record["event"] == "scores"]
        told = [(line["version"], pytest.approx(line["valid"])) for line in evaluated]
        assert recorded[-epochs:] == told and len(recorded) == 3 + again
    assert "at its end (3 epochs)" in job.stdout


def test_a_signal_ends_the_epoch_without_what_follows_it(mpirun: MpiRunner, tmp_path: Path) -> None:
    """To evaluate takes the time that there is to save; the run goes on in that epoch."""
    signalled = ("async-global", "3", "signal", "1")
    job = mpirun.program(1, EPOCHS_PROGRAM, tmp_path / "run", *signalled, exit_code=PREEMPTED)
    assert [json.loads(line)["epoch"] for line in job.stdout.splitlines() if line.startswith("{")] == [0]
    assert 21 < state_of(tmp_path / "run")["tickets"]["low"] < 2 * 21


def test_a_break_between_epochs_ends_training_for_all(mpirun: MpiRunner, tmp_path: Path) -> None:
    """Though the program still holds the loop within, which is at its end."""
    job = mpirun.program(3, EPOCHS_PROGRAM, tmp_path / "run", "async-global", "1000", "break", "2")
    assert "done (the program asked for it)" in job.stdout
    assert 0 < state_of(tmp_path / "run")["tickets"]["low"] < 1000 * 21


def test_a_run_at_its_end_says_so(mpirun: MpiRunner, tmp_path: Path) -> None:
    case = {"mode": "sync", "run": "run", "share": {"epochs": 2}}
    cases = [case, case, {**case, "mode": "async"}]
    job = mpirun.program(1, PROGRAM, tmp_path, json.dumps(cases), exit_code=2)
    assert job.stdout.count("this run was at its end (2 epochs): nothing is left to train") == 1
    assert "trained to its end (2 epochs) in mode sync: nothing is left to train in mode async" in job.stderr
