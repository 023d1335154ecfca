"""Jobs of several nodes, each a network host of its own with its own name, address and shared memory."""

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mpich
import pytest
from slurm_cluster import SlurmCluster, reason_to_skip
from submitter import Submitter, completed, events_of, make_directory, summary_of
from terminal import Terminal

from hpcasync.bench.network_hosts import NetworkHosts
from hpcasync.bench.network_hosts import reason_to_skip as reason_without_hosts
from hpcasync.exit_codes import PREEMPTED

FEW = "stop={updates: 4}"


@pytest.fixture(scope="module")
def submitter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Submitter]:
    """A user's directory, with a corpus, that all hosts share."""
    reason = reason_to_skip()
    if reason and os.environ.get("HPCASYNC_REQUIRE_SLURM") == "1":
        pytest.fail(f"HPCASYNC_REQUIRE_SLURM=1, but {reason}")
    if reason := reason or reason_without_hosts():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("slurm-hosts")
    make_directory(directory)
    with NetworkHosts() as hosts:
        cluster = SlurmCluster(hosts)
        with cluster:
            user = Submitter(cluster, directory)
            text = ("train.en", "train.de", "--vocab-size", "28")
            completed(user.run("prepare.sbatch", *text, "--out", "data/tiny"))
            yield user
        assert cluster.left_behind == []


@pytest.fixture(params=["this MPI", "mpich"])
def environment(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Options of sbatch by which a job loads one or the other MPI library."""
    if request.param != "mpich":
        return ()
    mpich.require()
    return ("--export=" + ",".join(["ALL", *(f"{name}={value}" for name, value in mpich.ENVIRONMENT.items())]),)


def started_as(output: str, environment: tuple[str, ...]) -> None:
    """Check which library a job used, and what started it."""
    assert ("MPI: MPICH" in output) == bool(environment), output
    assert ("srun --mpi=pmi2" in output) == bool(environment), output


def test_servers_are_spread_over_the_nodes(submitter: Submitter, environment: tuple[str, ...]) -> None:
    name = "spread-mpich" if environment else "spread"
    options = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2", *environment)
    job = completed(submitter.run("train-async.sbatch", "tiny.yaml", f"name={name}", FEW, options=options))[0]
    started_as(job.output, environment)
    assert "n0: servers on ranks 0, workers on ranks 1" in job.output
    assert "n1: servers on ranks 2, workers on ranks 3" in job.output
    run_dir = submitter.directory / "runs" / f"{name}-async-global-seed1"
    assert summary_of(run_dir)["num_updates"] == 4


def test_a_job_without_the_users_environment(submitter: Submitter) -> None:
    """`--export=NONE`, a default of some sites: mpirun's own srun would start its daemons without any."""
    options = ("--nodes=2", "--ntasks-per-node=1", "--export=NONE")
    job = completed(
        submitter.run("train-async.sbatch", "tiny.yaml", "name=bare", "roles.servers=1", FEW, options=options)
    )
    assert re.match(r"hpcasync: \d{4}-\S+, job \d+ \(train-async\) on n\[0-1\], start number 1\n", job[0].output)
    assert summary_of(submitter.directory / "runs" / "bare-async-global-seed1")["num_updates"] == 4


def test_doctor_looks_at_two_nodes(submitter: Submitter) -> None:
    script = submitter.directory / "doctor.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --output=%x-%j.out\n{sys.executable} -m hpcasync doctor --json\n")
    options = ("--nodes=2", "--ntasks-per-node=1", "--job-name=doctor", script)
    [job] = submitter.finish(submitter.cluster.submit(*options, cwd=submitter.directory))
    nodes = json.loads(job.output[job.output.index("{\n") : job.output.rindex("}") + 1])["checks"]["nodes"]
    assert nodes["status"] == "ok", nodes
    assert nodes["facts"]["hosts"] == ["n0", "n1"]


def test_servers_on_nodes_of_their_own(submitter: Submitter, environment: tuple[str, ...]) -> None:
    name = "apart-mpich" if environment else "apart"
    script = Path(__file__).parents[2] / "slurm" / "train-hetero.sbatch"
    words: tuple[str | Path, ...] = ("--nodes=1", *environment, ":", "--nodes=1", "--ntasks-per-node=2", script)
    job_id = submitter.cluster.submit(*words, "tiny.yaml", f"name={name}", FEW, cwd=submitter.directory)
    job = submitter.finish(job_id)[0]
    completed([job])
    started_as(job.output, environment)
    assert "1 node(s) of 1 server(s), 1 node(s) of 2 worker(s)" in job.output
    assert "n0: servers on ranks 0\n" in job.output
    assert "n1: workers on ranks 1-2\n" in job.output
    run_dir = submitter.directory / "runs" / f"{name}-async-global-seed1"
    assert summary_of(run_dir)["num_updates"] == 4


def has_prompts(number: int, shown: bytes) -> bool:
    return shown.count(b"ready> ") >= number


def test_the_interactive_step_of_salloc(submitter: Submitter) -> None:
    """A person's shell on the first of two nodes: launch and mpirun reach the other, and so do they from a step."""
    hosts = f"{sys.executable} -c 'from mpi4py import MPI; print(MPI.COMM_WORLD.size, MPI.Get_processor_name())'"
    launch = f"{sys.executable} -m hpcasync launch -n 4 --"
    lines = (f"{launch} {hosts}", f"mpirun -np 4 --bind-to none {hosts}", f"srun --pty {launch} {hosts}")
    environment = {**submitter.cluster.environment, "SHELL": "/bin/sh", "PS1": "ready> ", "OMPI_MCA_osc": "^ucx"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    salloc = ("salloc", "--nodes=2", "--ntasks-per-node=2")
    with Terminal(salloc, environment, submitter.directory) as terminal:
        for number, line in enumerate((*lines, "exit"), start=1):
            terminal.wait_until(partial(has_prompts, number), "prompt")
            terminal.press(f"{line}\n".encode())
        terminal.wait()
    shown = terminal.shown.decode()
    assert [shown.count(f"\n4 n{node}\r") for node in (0, 1)] == [6, 6], shown


def test_a_saved_job_of_two_nodes_ends_without_a_notice(submitter: Submitter) -> None:
    """mpirun starts its daemons by srun, which calls their end a failure (36608) and names options to debug it."""
    words = ("tiny.yaml", "name=noticed", "roles.servers=1", "stop={updates: 1000000}", "validation.every=1000000")
    options = ("--nodes=2", "--ntasks-per-node=1", "--no-requeue")
    job = submitter.submit("train-async.sbatch", *words, options=options)
    run_dir = submitter.directory / "runs" / "noticed-async-global-seed1"
    has_begun = lambda: (run_dir / "metrics.jsonl").exists() and bool(events_of(run_dir, "update"))  # noqa: E731
    submitter.cluster.wait_until(has_begun, "training")
    submitter.cluster.run("scancel", "--batch", "--signal=USR1", job)
    [ended] = submitter.finish(job)
    assert (ended.state, ended.exit_code) == ("FAILED", f"{PREEMPTED}:0"), ended.output
    after = ended.output.partition("stopped (preempted by SIGUSR1)")[2]
    assert re.search("the newest checkpoint is .*/checkpoints/u", after)
    assert "srun" not in after and "debug-daemons" not in after and "-----" not in after, after
