"""Workers that are killed while training goes on without them, and deaths that end the job (`--survive-workers`)."""

import json
import os
import re
import subprocess
import sys
from math import isfinite
from pathlib import Path

import psutil
import pytest
from runners import MpiRunner
from running_job import RunningJob, StartJob
from test_signals import check_consistent, write_config
from tiny_training import TinyCorpus

from hpcasync.bench.network_hosts import reason_to_skip as reason_without_hosts
from hpcasync.exit_codes import RANK_LOST
from hpcasync.runs.files import read_state

PROGRAM = Path(__file__).parent / "programs" / "dying_workers.py"
SURVIVE = ("--survive-workers",)
NUM_TICKETS = 60


@pytest.fixture(autouse=True)
def _needs_open_mpi(mpirun: MpiRunner) -> None:
    if mpirun.launcher.flavour != "openmpi":
        pytest.skip("MPICH ends a job when a rank dies")


@pytest.mark.parametrize(
    ("pull", "window", "moments"),
    [
        ("handled", "mpi", ("write", "lock")),
        ("latest", "mpi", ("rest",)),
        ("handled", "mpi", ("draw", "offer")),
        ("applied", "mpi", ("announce", "write")),
        ("handled", "mapped", ("announce", "write")),
    ],
)
def test_what_a_dead_worker_held_is_done_once(
    mpirun: MpiRunner, pull: str, window: str, moments: tuple[str, ...]
) -> None:
    """Two servers and three workers; the dead are workers 1 and 2."""
    job = mpirun.python(5, PROGRAM, pull, window, *moments, timeout=240, options=["--with-ft", "mpi"])
    result = json.loads(next(line for line in job.stdout.splitlines() if line.startswith("{")))
    assert result["applied"] == list(range(NUM_TICKETS)), "each batch once"
    # Who dies while it takes an offer dies only if it gets one.
    assert sorted(result["lost"]) == [1, 2][: len(moments)] or (result["lost"] == [1] and "offer" in moments)
    assert not result["is_stuck"]
    assert isfinite(result["final"]), "no half-written gradient is part of it"


def ranks_of(job: RunningJob, num_ranks: int) -> dict[int, psutil.Process]:
    """The processes, known before training begins: to be killed at once when it is time."""
    job.wait_until(lambda: len(job.ranks()) == num_ranks, "all ranks")
    return job.ranks()


def test_training_goes_on_without_workers_that_are_killed(
    tmp_path: Path, tiny_corpus: TinyCorpus, start_job: StartJob
) -> None:
    """Two of three, one after the other; no batch is lost or done twice."""
    num_epochs = 30
    ahead = "data.prefetch=true"  # a worker that dies has drawn two batches
    common = "roles.servers=2", "accumulate.global=2", "optimizer.name=muon"
    overrides = *common, f"stop={{epochs: {num_epochs}}}", "checkpoint.every=50", ahead
    log = tmp_path / "log"
    with start_job(5, write_config(tmp_path, tiny_corpus), *overrides, options=SURVIVE, log=log) as job:
        ranks = ranks_of(job, 5)
        for number, victim in ((1, 3), (2, 4)):
            due = job.num_updates + 10
            job.wait_until(lambda due=due: job.num_updates >= due, f"update {due}")  # type: ignore[misc]
            ranks[victim].kill()
            job.wait_until(lambda number=number: len(job.records("worker-lost")) == number, "the loss")  # type: ignore[misc]
        assert job.wait() == 0, job.output
    state = read_state(job.run_dir / "checkpoints" / job.newest)
    num_batches = num_epochs * tiny_corpus.plan(job.config).num_batches()
    assert state["tickets"] == {"low": num_batches, "above": []}
    assert state["counters"]["num_batches"] == num_batches
    [host] = {record["host"] for record in job.records("worker-lost")}
    lost = [{"worker": worker, "rank": worker + 2, "host": host} for worker in (1, 2)]
    assert json.loads((job.run_dir / "summary.json").read_text())["workers_lost"] == lost
    assert f"worker 1 (rank 3 on {host}) has died; 2 worker(s) go on" in job.output
    assert "; workers lost: 2" in job.output and "Traceback" not in job.output


def test_the_last_worker_takes_the_job_with_it(tmp_path: Path, tiny_corpus: TinyCorpus, start_job: StartJob) -> None:
    config, log = write_config(tmp_path, tiny_corpus), tmp_path / "log"
    with start_job(2, config, "mode=async", "stop={updates: 1000000}", options=SURVIVE, log=log) as job:
        job.wait_until(lambda: job.num_updates >= 10, "update 10")
        job.rank(1).kill()
        assert job.wait() == RANK_LOST, job.output
    assert check_consistent(job) >= 10, "with a checkpoint of the last update"
    assert "stopped (all workers have died)" in job.output and "Traceback" not in job.output


@pytest.mark.parametrize(("rank", "name"), [(0, "server 0"), (1, "server 1")])
def test_the_death_of_a_server_ends_the_job(
    tmp_path: Path, tiny_corpus: TinyCorpus, rank: int, name: str, start_job: StartJob
) -> None:
    overrides = ("roles.servers=2", "accumulate.global=2", "stop={updates: 1000000}")
    log = tmp_path / "log"
    with start_job(4, write_config(tmp_path, tiny_corpus), *overrides, options=SURVIVE, log=log) as job:
        job.wait_until(lambda: job.num_updates >= 10, "update 10")
        job.rank(rank).kill()
        assert job.wait() == RANK_LOST, job.output
    message = (
        rf"hpcasync: {name} \(rank {rank} on \S+, process \d+\) has died, and the job cannot go on without it: it ends"
    )
    assert len(re.findall(message, job.output)) == 1, job.output
    assert "Traceback" not in job.output


def test_a_machine_without_a_network(tmp_path: Path, tiny_corpus: TinyCorpus) -> None:
    """Messages go over TCP, and a container may have nothing but the interface to itself."""
    if reason := reason_without_hosts():
        pytest.skip(reason)
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    launch = [sys.executable, "-m", "hpcasync", "launch", "-n", "3", *SURVIVE, "--", "train"]
    command = [*alone, *launch, str(write_config(tmp_path, tiny_corpus)), "stop={updates: 5}"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0 and "5 updates" in done.stdout, done.stdout + done.stderr


def test_synchronous_training_cannot_survive(tmp_path: Path, tiny_corpus: TinyCorpus, start_job: StartJob) -> None:
    with start_job(2, write_config(tmp_path, tiny_corpus), "mode=sync", options=SURVIVE, log=tmp_path / "log") as job:
        assert job.wait() == 2, job.output
    assert job.output.count("--survive-workers: mode=sync needs every rank in every step") == 1
