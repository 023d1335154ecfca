"""Signals that ask a job to save and end: a consistent checkpoint, an exit code of its own, and a run that goes on."""

import signal
from pathlib import Path

import pytest
import yaml
from running_job import RunningJob, StartJob
from tiny_training import CONFIG, TinyCorpus

from hpcasync.complete_files import list_complete
from hpcasync.exit_codes import PREEMPTED
from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.runs.files import read_state


def write_config(directory: Path, corpus: TinyCorpus) -> Path:
    path = directory / "config.yaml"
    values = {**CONFIG, "run_dir": str(directory / "runs"), "data": {**CONFIG["data"], "path": str(corpus.path)}}
    path.write_text(yaml.safe_dump({**values, "logging": {"every": 5, "tensorboard": False}}))
    return path


def check_consistent(job: RunningJob) -> int:
    """What the newest checkpoint says adds up; returns its number of updates."""
    state = read_state(job.run_dir / "checkpoints" / job.newest)
    applied = TicketLedger(state["tickets"]["low"], state["tickets"]["above"])
    assert applied.low + len(applied.above) == state["counters"]["num_batches"]
    assert state["gradients"]["num_applied"] == state["counters"]["num_steps"]
    return int(state["counters"]["num_updates"])


@pytest.mark.parametrize(
    ("number", "num_ranks", "overrides"),
    [
        # Two servers; while snapshots are scored, for a search takes longer than these updates.
        (signal.SIGUSR1, 4, ("roles.servers=2", "accumulate.global=2", "validation={every: 20, beam: 2}")),
        # `launch` hands TERM on as USR1, because mpirun would give no time.
        (signal.SIGTERM, 2, ("mode=sync", "checkpoint.every=3")),
    ],
)
def test_a_signal_saves_and_the_run_goes_on(
    tmp_path: Path,
    tiny_corpus: TinyCorpus,
    number: signal.Signals,
    num_ranks: int,
    overrides: tuple[str, ...],
    start_job: StartJob,
) -> None:
    config, log = write_config(tmp_path, tiny_corpus), tmp_path / "log"
    with start_job(num_ranks, config, *overrides, "stop={updates: 1000000}", log=log) as job:
        job.wait_until(lambda: job.num_updates >= 25, "update 25")
        job.process.send_signal(number)
        assert job.wait() == PREEMPTED, job.output
    num_updates = check_consistent(job)
    assert num_updates >= 25
    assert job.records("end")[-1]["num_updates"] == num_updates, "the checkpoint is of the last update"
    assert f"stopped (preempted by {number.name}): {num_updates} updates" in job.output
    assert f"exit code {PREEMPTED}; the newest checkpoint is " in job.output
    assert "Traceback" not in job.output and "killed" not in job.output.lower()

    end = num_updates + 7
    with start_job(num_ranks, config, *overrides, f"stop={{updates: {end}}}", "--resume", log=log) as job:
        assert job.wait() == 0, job.output
    assert f"resuming from {job.run_dir}/checkpoints/u{num_updates:08d}" in job.output
    assert check_consistent(job) == end
    snapshots = [path.name for path in list_complete(job.run_dir / "snapshots")]
    assert snapshots[-1] == f"u{end:08d}"
    if "mode=sync" not in overrides:
        validated = {record["name"] for record in job.records("validation")}
        assert validated == set(snapshots), "what was not scored before the signal is scored after it"
