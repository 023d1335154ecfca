"""A program that has joined a job, in a batch job of a real SLURM."""

import json
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from submitter import ROOT, Submitter, completed, events_of, summary_of

PROGRAM = ROOT / "tests" / "parallel" / "programs" / "joined.py"
BATCHES = 26  # of an epoch


@pytest.fixture(scope="module")
def submitter(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Submitter:
    """A user's directory."""
    return Submitter(slurm, tmp_path_factory.mktemp("slurm-program"))


def test_a_warned_program_saves_and_goes_on_after_a_requeue(submitter: Submitter) -> None:
    cluster, cases = submitter.cluster, submitter.directory / "cases.json"
    checkpoints, num_epochs = submitter.directory / "run" / "checkpoints", 100_000

    def configure() -> None:
        case = {"mode": "async-global", "run": "run", "share": {"epochs": num_epochs}}
        case |= {"made": {"pause": 0.02, "total": 10_000_000}, "settings": {"checkpoint.every": 10}}
        cases.write_text(json.dumps([case]))

    def prepare_second_start() -> None:
        nonlocal num_epochs
        newest = max(checkpoints.glob("u*[0-9]/state.json"))
        num_epochs = json.loads(newest.read_text())["tickets"]["low"] // BATCHES + 2
        configure()

    configure()
    job = submitter.submit("program.sbatch", str(PROGRAM), ".", cases.name, options=("--ntasks-per-node=3",))
    cluster.wait_until(lambda: any(checkpoints.glob("u*[0-9]/state.json")), "a checkpoint")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.start_again(job, prepare_second_start)
    ended = completed(submitter.finish(job))[0]
    assert ended.restarts == 1 and "goes back into the queue" in ended.output
    assert "resuming from run/checkpoints/u" in ended.output
    assert len(events_of(checkpoints.parent, "start")) == 2
    assert summary_of(checkpoints.parent)["num_batches"] == num_epochs * BATCHES


def test_without_a_program(submitter: Submitter) -> None:
    ended = submitter.run("program.sbatch")[0]
    assert ended.state == "FAILED" and "usage: sbatch slurm/program.sbatch PROGRAM.py" in ended.output
    assert not list(Path(submitter.directory).glob("*.py"))
