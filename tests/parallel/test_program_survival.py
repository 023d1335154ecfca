"""Joined programs that go on without workers that are killed (`--survive-workers`)."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from forked_ranks import ForkedRanks
from runners import MpiRunner, launch_line
from safetensors.torch import load_file
from test_program import PROGRAM, assert_all_was_trained_once, told

EPOCHS = 4


@pytest.fixture(autouse=True)
def _needs_open_mpi(mpirun: MpiRunner) -> None:
    if mpirun.launcher.flavour != "openmpi":
        pytest.skip("MPICH ends a job when a rank dies")


def launched(
    forked: ForkedRanks | None, num_ranks: int, directory: Path, case: dict[str, Any]
) -> "subprocess.CompletedProcess[str]":
    """`hpcasync launch --survive-workers` of a program."""
    command = launch_line(forked, num_ranks, PROGRAM, directory, json.dumps([case]), options=["--survive-workers"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)


@pytest.mark.parametrize(
    ("given", "pull", "processes"),
    [
        ({}, "handled", 0),
        ({}, "latest", 1),  # batches are drawn long before they are trained on
        ({"accumulate": 3}, "handled", 0),
    ],
)
def test_the_others_do_what_dead_workers_had_begun(
    tmp_path: Path, forked: ForkedRanks | None, given: dict[str, Any], pull: str, processes: int
) -> None:
    """Two servers and three workers, of which two die, the first among them."""
    case = {
        "mode": "async-global",
        "run": "run",
        "settings": {"roles.servers": 2, "accumulate.global": 2, "exchange.pull": pull},
        "share": {"epochs": EPOCHS},
        "made": {"processes": processes, "pause": 0.02, "dies_at": {"2": 8, "4": 12}, "together": 17},
        **given,
    }
    job = launched(forked, 5, tmp_path, case)
    assert job.returncode == 0, job.stdout + job.stderr
    assert_all_was_trained_once(tmp_path / "run", EPOCHS)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert sorted(lost["rank"] for lost in summary["workers_lost"]) == [2, 4]
    ranks = {line["rank"]: line for line in told(job, "run")}
    assert sorted(ranks) == [0, 1, 3]
    assert [rank for rank, line in ranks.items() if line["first"]] == [3]
    assert all(line["parameters"] == ranks[0]["parameters"] for line in ranks.values())
    assert given or ranks[3]["accuracy"] > 0.9  # few updates of many batches do not get there
    tensors = load_file(tmp_path / "run" / (tmp_path / "run" / "last").read_text().strip() / "parameters.safetensors")
    assert all(line["mean"] == tensors["norm.running_mean"].tolist() for line in ranks.values())
    assert ranks[3]["tracked"] > 0
    assert "Traceback" not in job.stderr


def test_a_synchronous_program_cannot_survive(tmp_path: Path, forked: ForkedRanks | None) -> None:
    job = launched(forked, 2, tmp_path, {"mode": "sync", "run": "run", "share": {"epochs": 1}})
    assert job.returncode == 2, job.stderr
    assert job.stderr.count("--survive-workers: mode=sync needs every rank in every step") == 1
