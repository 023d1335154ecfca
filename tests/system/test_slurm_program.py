"""A program that has joined a job, in a batch job of a real SLURM."""

import json
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from submitter import ROOT, Submitter, completed, events_of, summary_of

pytestmark = pytest.mark.timeout(300)
PROGRAM = ROOT / "tests" / "parallel" / "programs" / "joined.py"


@pytest.fixture(scope="module")
def submitter(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Submitter:
    """A user's directory."""
    return Submitter(slurm, tmp_path_factory.mktemp("slurm-program"))


def test_a_warned_program_saves_and_goes_on_after_a_requeue(submitter: Submitter) -> None:
    cluster, case = submitter.cluster, {"mode": "async-global", "run": "run", "share": {"epochs": 8}}
    case |= {"made": {"pause": 0.1, "total": 600}, "settings": {"checkpoint.every": 10}}
    arguments = (str(PROGRAM), ".", json.dumps([case]))
    job = submitter.submit("program.sbatch", *arguments, options=("--ntasks-per-node=3",))
    checkpoints = submitter.directory / "run" / "checkpoints"
    cluster.wait_until(lambda: any(checkpoints.glob("u*[0-9]/state.json")), 120, "a checkpoint")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.start_again(job, lambda: None, timeout=120)
    ended = completed(submitter.finish(job))[0]
    assert ended.restarts == 1 and "goes back into the queue" in ended.output
    assert "resuming from run/checkpoints/u" in ended.output
    assert len(events_of(checkpoints.parent, "start")) == 2
    assert summary_of(checkpoints.parent)["num_batches"] == 8 * 26


def test_without_a_program(submitter: Submitter) -> None:
    ended = submitter.run("program.sbatch")[0]
    assert ended.state == "FAILED" and "usage: sbatch slurm/program.sbatch PROGRAM.py" in ended.output
    assert not list(Path(submitter.directory).glob("*.py"))
