"""The transport between hosts, and the same on MPICH: three hosts joined by real TCP, and one."""

import os
from collections.abc import Iterator
from pathlib import Path

import mpich
import pytest
from forked_ranks import ForkedRanks
from runners import RANK_ENVIRONMENT, MpiRunner
from tiny_training import TinyCorpus, Trainer

from hpcasync.bench.network_hosts import NetworkHosts

PROGRAMS = Path(__file__).parent / "programs"
# For a machine that is busy with other things: MPICH's ranks keep a core busy while they wait.
JOB_SECONDS = 500
ELSEWHERE = ["mpich on one host", "this MPI on three hosts", "mpich on three hosts"]


@pytest.fixture(scope="module")
def forked_there(hosts: NetworkHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedRanks]:
    """Forks on all hosts."""
    forked = ForkedRanks(tmp_path_factory.mktemp("ranks"), {**os.environ, **RANK_ENVIRONMENT}, hosts=hosts)
    yield forked
    forked.close()


@pytest.fixture
def runner(request: pytest.FixtureRequest, mpirun: MpiRunner) -> MpiRunner:
    """Runs jobs with the library and on the hosts that the test's parameter names."""
    library, _, number = request.param.partition(" on ")
    if library == "mpich":
        mpich.require()
    hosts = request.getfixturevalue("hosts") if number == "three hosts" else None
    if library == "mpich":
        return MpiRunner(mpich.LAUNCHER, environment=mpich.ENVIRONMENT, hosts=hosts)
    forked = request.getfixturevalue("forked_there") if hosts and mpirun.launcher.flavour == "openmpi" else None
    return MpiRunner(mpirun.launcher, hosts=hosts, forked=forked)


everywhere = pytest.mark.parametrize("runner", ELSEWHERE, indirect=True)


@everywhere
def test_windows(runner: MpiRunner) -> None:
    job = runner.python(3, PROGRAMS / "check_windows.py", "nodes", timeout=JOB_SECONDS)
    assert "windows passed" in job.stdout


@everywhere
def test_engine(runner: MpiRunner) -> None:
    job = runner.python(5, PROGRAMS / "check_engine.py", "few", timeout=JOB_SECONDS)
    assert "engine passed" in job.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("runner", ["this MPI on one host", *ELSEWHERE], indirect=True)
def test_engine_with_up_to_twelve_ranks(runner: MpiRunner) -> None:
    job = runner.python(12, PROGRAMS / "check_engine.py", "many-ranks", timeout=1100)
    assert "engine passed" in job.stdout


@everywhere
def test_train(runner: MpiRunner, tmp_path: Path, tiny_corpus: TinyCorpus, request: pytest.FixtureRequest) -> None:
    run = Trainer(runner, tmp_path, tiny_corpus)(3, "stop.epochs=1", "accumulate.global=2", "exchange.overlap=full")
    summary = run.summary
    assert summary["stop_reason"] == "end of the corpus" and summary["num_updates"] == 11
    assert summary["gradients_pushed"] == summary["gradients_applied"] == 22
    header = run.job.stdout
    assert ("MPICH" if "mpich" in request.node.name else "Open MPI") in header
    if "three hosts" in request.node.name:
        roles = [line.strip() for line in header.splitlines() if " on ranks " in line]
        assert [line.partition(":")[0] for line in roles] == ["n0", "n1", "n2"]


@pytest.mark.parametrize("runner", ["this MPI on three hosts"], indirect=True)
def test_a_server_for_each_host_and_mapped_memory_within_them(
    runner: MpiRunner, tmp_path: Path, tiny_corpus: TinyCorpus
) -> None:
    train = Trainer(runner, tmp_path, tiny_corpus)
    settings = "stop.updates=6", "roles.servers=per-device", "exchange.window=mapped", "exchange.overlap=push"
    run = train(6, *settings)
    assert (run.summary["roles"]["servers"], run.summary["roles"]["workers"]) == (3, 3)
    roles = [line.strip() for line in run.job.stdout.splitlines() if " on ranks " in line]
    assert all("servers on ranks" in line and "workers on ranks" in line for line in roles) and len(roles) == 3
    assert "cpu memory that ranks of a host map, MPI's windows between hosts" in run.job.stdout
    assert run.summary["gradients_pushed"] == run.summary["gradients_applied"] + run.summary["gradients_dropped"]


@pytest.mark.parametrize("runner", ["this MPI on three hosts"], indirect=True)
def test_gradients_are_summed_on_their_hosts(runner: MpiRunner, tmp_path: Path, tiny_corpus: TinyCorpus) -> None:
    train = Trainer(runner, tmp_path, tiny_corpus)
    settings = "stop.epochs=1", "exchange.host_sums=true", "exchange.gradients=bf16", "optimizer.name=muon"
    summary = train(9, *settings, "roles.servers=per-device", "accumulate.global=4").summary
    assert (summary["roles"]["servers"], summary["roles"]["workers"]) == (3, 6)
    assert summary["stop_reason"] == "end of the corpus"
    assert summary["gradients_pushed"] == summary["gradients_applied"] == 22 and summary["num_updates"] == 6
    refused = train(3, *settings, "name=refused", exit_code=2).job
    assert "Traceback" not in refused.stderr
    assert refused.stderr.count("exchange.host_sums needs a server on every host, and n1 (rank 1) has none") == 1


@pytest.mark.parametrize("runner", ["this MPI on three hosts"], indirect=True)
def test_mapped_windows_give_the_same_bits(runner: MpiRunner, tmp_path: Path, tiny_corpus: TinyCorpus) -> None:
    """One worker, and three servers on two hosts, one of which it shares: gone on with, too."""
    train = Trainer(runner, tmp_path, tiny_corpus)
    common = "mode=async", "exchange.pull=applied", "optimizer.name=muon"
    settings = *common, "roles.servers=3", "exchange.parameters=bf16"
    one = train(4, *settings, "stop.updates=8", "name=mpi")
    train(4, *settings, "stop.updates=4", "name=mapped", "exchange.window=mapped")
    two = train(4, *settings, "stop.updates=8", "name=mapped", "exchange.window=mapped", flags=["--resume"])
    assert two.losses == one.losses
