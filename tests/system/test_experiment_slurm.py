"""`hpcasync experiment --slurm submit` on a real SLURM: arrays by number of ranks, and what is collected afterwards."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from slurm_cluster import SlurmCluster
from submitter import CONFIG, NUM_UPDATES, Submitter, completed, make_directory, summary_of


@pytest.fixture
def submitter(slurm: SlurmCluster, tmp_path: Path) -> Submitter:
    """A user's directory with a prepared corpus and an experiment."""
    make_directory(tmp_path)
    text = ("train.en", "train.de", "--valid", "valid.en", "valid.de", "--vocab-size", "28", "--out", "data/tiny")
    subprocess.run(
        [sys.executable, "-m", "hpcasync", "data", "prepare", *text], cwd=tmp_path, check=True, capture_output=True
    )
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**CONFIG, "accumulate": {"global": 1}}))
    experiment = {
        "name": "trial",
        "base": "tiny.yaml",
        "workers": 1,
        "axes": {"mode": ["async"], "workers": [1, 2], "optimizer.learning_rate": [0.001, 0.003]},
        "exclude": [{"workers": 2, "optimizer.learning_rate": 0.003}],
        "evaluate": "valid",
    }
    (tmp_path / "trial.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return Submitter(slurm, tmp_path)


def run_experiment(submitter: Submitter, *words: str) -> str:
    """`hpcasync experiment trial.yaml WORDS` on the cluster; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "hpcasync", "experiment", "trial.yaml", *words],
        cwd=submitter.directory,
        env={**os.environ, **submitter.cluster.environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_experiment_as_arrays(submitter: Submitter) -> None:
    said = run_experiment(submitter, "--slurm", "submit")
    arrays = re.findall(r"submitted: array (\d+), (\w+ of \d)", said)
    assert [what for _, what in arrays] == ["train of 2", "evaluate of 2", "train of 1", "evaluate of 1"]
    for array, _ in arrays:
        completed(submitter.finish(array))
    directory = submitter.directory / "runs" / "trial"
    names = ("workers1-learning_rate0.001", "workers1-learning_rate0.003", "workers2-learning_rate0.001")
    summaries = [summary_of(directory / f"trial-{name}-async-seed1") for name in names]
    assert [(s["num_updates"], s["roles"]["workers"]) for s in summaries] == [
        (NUM_UPDATES, 1),
        (NUM_UPDATES, 1),
        (NUM_UPDATES, 2),
    ]
    run_experiment(submitter, "--collect")
    groups = json.loads((directory / "results.json").read_text())["groups"]
    assert len(groups) == 3 and all(group["runs"][0]["finished"] for group in groups)
    for name in names:
        lines = (directory / f"trial-{name}-async-seed1" / "evaluation-valid.jsonl").read_text().splitlines()
        assert [json.loads(line)["num_updates"] for line in lines] == [NUM_UPDATES // 2, NUM_UPDATES]
    assert sorted(path.name for path in (directory / "logs").glob(f"trial-{arrays[0][0]}_*")) == [
        f"trial-{arrays[0][0]}_{index}.out" for index in (1, 2)
    ]
    # A second submission finds nothing to do.
    assert "submitted" not in run_experiment(submitter, "--slurm", "submit")
