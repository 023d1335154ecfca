"""What trains wrongly in silence is noticed: mistakes of a program that uses the engine, each with what it is told."""

import re
from pathlib import Path

import pytest
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "engine_mistakes.py"
TOLD = {
    "zero-grad": "has left the vector of gradients, so what is computed there is never pushed: between steps write",
    "no-weight": "none of this worker's last 100 gradients had a weight (PushRecord.num_tokens)",
    "wide": "the gradient is float64 of shape (2832,), not float32",
}
START = {
    "groups": "2 groups of [0, 1] parameters",
    "whole-vector": "steps an element by what is in other elements",
    "closure": "LBFGS cannot make a step",
    "start": "servers have different initial parameters: those of rank 0 and rank 1",
    "size": "where rank 0 has first.weight:(64, 32)@64, rank 2 has first.weight:(96, 32)@64",
    "shape": "where rank 0 has extra:(8, 2)@0, rank 2 has extra:(2, 8)@0",
    "options": "rank 0 has pushes_per_update=1, rank 2 has pushes_per_update=2",
    "may-lose": "norm gathers statistics of its batches",
}
TRAINED = ("none", "zero-grad-in-place", "some-nan")


@pytest.fixture(scope="module")
def said(mpirun: MpiRunner) -> str:
    """What ranks have printed of one mistake after the other."""
    return mpirun.python(3, PROGRAM, "start", *TRAINED, *TOLD, timeout=240).stdout


def test_what_ranks_compare_before_they_train(said: str) -> None:
    found = dict(line.split(": ", maxsplit=1) for line in said.splitlines() if line.partition(": ")[0] in START)
    assert found.keys() == START.keys()
    for mistake, words in START.items():
        assert words in found[mistake]


@pytest.mark.parametrize("mistake", TRAINED)
def test_statistics_of_the_workers_reach_the_server(said: str, mistake: str) -> None:
    """Batches far from zero: with a BatchNorm that has not seen them, one class in ten is right."""
    accuracies = {who: float(value) for who, value in re.findall(rf"^{mistake} (server|rank \d) (\S+)$", said, re.M)}
    assert accuracies.keys() == {"server", "rank 0", "rank 1", "rank 2"}
    # A worker has what it pulled last, which may be the first version where others were faster.
    assert accuracies["server"] > 0.9 and accuracies["rank 0"] > 0.9, accuracies
    told = re.findall(rf"^{mistake} told (.*)$", said, re.M)
    assert len(told) == 2
    assert any("a gradient is not finite (batches [" in words for words in told) == (mistake == "some-nan")


@pytest.mark.parametrize("mistake", TOLD)
def test_what_a_worker_notices(said: str, mistake: str) -> None:
    told = re.findall(rf"^{mistake} told (.*)$", said, re.M)
    assert len(told) == 2 and all(TOLD[mistake] in words for words in told), told


def test_what_a_worker_notices_ends_the_job(mpirun: MpiRunner) -> None:
    job = mpirun.python(3, PROGRAM, "nan", "end", exit_code=1)
    assert "none of this worker's last 100 gradients was finite" in job.stderr
