"""`hpcasync slurm submit` on a real SLURM: chains, and what it refuses to submit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from submitter import NUM_UPDATES, Submitter, completed, make_directory, summary_of

PREPARE = "train.en train.de --valid valid.en valid.de --vocab-size 28"


@pytest.fixture(scope="module")
def submitter(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Submitter:
    """A user's directory with a configuration and text."""
    directory = tmp_path_factory.mktemp("slurm-submit")
    make_directory(directory)
    return Submitter(slurm, directory)


def slurm_command(submitter: Submitter, *words: str) -> "subprocess.CompletedProcess[str]":
    """`hpcasync slurm WORDS` on the cluster."""
    return subprocess.run(
        [sys.executable, "-m", "hpcasync", "slurm", *words],
        cwd=submitter.directory,
        env={**os.environ, **submitter.cluster.environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def submitted(done: "subprocess.CompletedProcess[str]") -> dict[str, str]:
    """Ids of the jobs by kind."""
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"Submitted (\w+) as job (\d+)", done.stdout))


def test_a_chain_prepares_trains_and_evaluates(submitter: Submitter) -> None:
    words = ("submit", "tiny.yaml", "--chain", "prepare,train,evaluate", "--prepare", PREPARE, "--evaluate", "--beam 1")
    done = slurm_command(submitter, *words, "--ntasks-per-node", "2", "--time", "30")
    jobs = submitted(done)
    assert list(jobs) == ["prepare", "train", "evaluate"]
    for job in jobs.values():
        completed(submitter.finish(job))
    starts, ends = ([submitter.cluster.show(job)[0][key] for job in jobs.values()] for key in ("StartTime", "EndTime"))
    assert ends[0] <= starts[1] and ends[1] <= starts[2]
    run_dir = submitter.directory / "runs" / "tiny-async-global-seed1"
    assert summary_of(run_dir)["num_updates"] == NUM_UPDATES
    records = [json.loads(line) for line in (run_dir / "evaluation-valid.jsonl").read_text().splitlines()]
    assert [record["num_updates"] for record in records] == [NUM_UPDATES // 2, NUM_UPDATES]


def test_what_comes_after_a_failure_never_starts(submitter: Submitter) -> None:
    words = ("submit", "tiny.yaml", "data.path=data/none", "name=fails", "--chain", "train,evaluate")
    jobs = submitted(slurm_command(submitter, *words))
    train = submitter.finish(jobs["train"])[0]
    evaluate = submitter.cluster.wait(jobs["evaluate"])
    assert (train.state, train.exit_code) == ("FAILED", "2:0")
    assert evaluate[0]["JobState"] == "CANCELLED"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--gpus 8",
            "--gpus-per-node 8: 0 node(s) of partition cpu have so many GPUs, 1 are asked for, and the best has 2",
        ),
        ("--nodes 4", "--nodes 4: partition cpu has 3 node(s)"),
        ("--partition short --time 1:00:00", "--time 1:00:00 is over the limit of partition short, 10:00"),
        ("--partition shirt", "--partition shirt: there is no such partition; did you mean short?"),
        ("--servers 2 --ntasks-per-node 2", "2 rank(s) on 1 node(s) cannot hold 2 server(s) and a worker"),
        ("--ntasks-per-node 2 --cpus-per-task 4", "2 rank(s) of 4 CPU(s) on a node"),
    ],
)
def test_what_cannot_start_is_not_submitted(submitter: Submitter, words: str, message: str) -> None:
    newest = submitter.cluster.run("squeue", "--noheader", "--states", "all", "--format", "%i").split()
    done = slurm_command(submitter, "submit", "tiny.yaml", *words.split())
    assert done.returncode == 2
    assert done.stderr.count("hpcasync: error") == 1 and message in done.stderr, done.stderr
    assert submitter.cluster.run("squeue", "--noheader", "--states", "all", "--format", "%i").split() == newest


def test_sbatch_has_the_last_word(submitter: Submitter) -> None:
    done = slurm_command(submitter, "submit", "tiny.yaml", "--constraint", "quantum")
    assert done.returncode == 2
    assert "sbatch refused" in done.stderr and "none of the 1 job(s) is left" in done.stderr


def test_the_scripts_are_those_that_render_prints(submitter: Submitter, tmp_path: Path) -> None:
    printed = slurm_command(submitter, "render", "tiny.yaml", "name=printed", "--ntasks-per-node", "2").stdout
    script = tmp_path / "printed.sbatch"
    script.write_text(printed)
    job = submitter.cluster.submit(script, options=("--hold",), cwd=submitter.directory)
    batch = submitter.cluster.run("scontrol", "write", "batch_script", job, "-")
    submitter.cluster.run("scancel", job)
    assert batch.strip() == printed.strip()
