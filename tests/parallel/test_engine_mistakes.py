"""What trains wrongly in silence is noticed: mistakes of a program that uses the engine, each with what it is told."""

from pathlib import Path

import pytest
from runners import MpiRunner

from hpcasync.launch.process import FinishedJob

PROGRAM = Path(__file__).parent / "programs" / "engine_mistakes.py"


def run(mpirun: MpiRunner, mistake: str) -> FinishedJob:
    return mpirun.python(3, PROGRAM, mistake, timeout=120, check=False)


def test_what_ranks_compare_before_they_train(mpirun: MpiRunner) -> None:
    job = run(mpirun, "start")
    assert job.returncode == 0, job.stderr
    said = dict(line.split(": ", maxsplit=1) for line in job.stdout.splitlines() if ": " in line)
    expected = {
        "groups": "2 groups of [0, 1] parameters",
        "whole-vector": "steps an element by what is in other elements",
        "closure": "LBFGS cannot make a step",
        "start": "servers have different initial parameters: those of rank 0 and rank 1",
        "size": "where rank 0 has first.weight:(64, 32)@64, rank 2 has first.weight:(96, 32)@64",
        "shape": "where rank 0 has extra:(8, 2)@0, rank 2 has extra:(2, 8)@0",
        "options": "rank 0 has pushes_per_update=1, rank 2 has pushes_per_update=2",
        "may-lose": "norm gathers statistics of its batches",
    }
    assert said.keys() == expected.keys()
    for mistake, words in expected.items():
        assert words in said[mistake]


@pytest.mark.parametrize("mistake", ["none", "zero-grad-in-place", "some-nan"])
def test_statistics_of_the_workers_reach_the_server(mpirun: MpiRunner, mistake: str) -> None:
    """Batches far from zero: with a BatchNorm that has not seen them, one class in ten is right."""
    job = run(mpirun, mistake)
    assert job.returncode == 0, job.stderr
    accuracies = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in job.stdout.splitlines()}
    assert accuracies.keys() == {"server", "rank 0", "rank 1", "rank 2"}
    # A worker has what it pulled last, which may be the first version where others were faster.
    assert accuracies["server"] > 0.9 and accuracies["rank 0"] > 0.9, accuracies
    assert ("a gradient is not finite (batches [" in job.stderr) == (mistake == "some-nan")


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (
            "zero-grad",
            "has left the vector of gradients, so what is computed there is never pushed: between steps write",
        ),
        ("nan", "none of this worker's last 100 gradients was finite"),
        ("no-weight", "none of this worker's last 100 gradients had a weight (PushRecord.num_tokens)"),
        ("wide", "the gradient is float64 of shape (2832,), not float32"),
    ],
)
def test_what_a_worker_notices(mpirun: MpiRunner, mistake: str, words: str) -> None:
    job = run(mpirun, mistake)
    assert job.returncode == 1 and not job.timed_out
    assert words in job.stderr
