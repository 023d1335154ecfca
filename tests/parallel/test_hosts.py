"""The transport between hosts, and the same on MPICH: three hosts joined by real TCP, and one."""

from pathlib import Path

import mpich
import pytest
from runners import MpiRunner
from tiny_training import TinyCorpus, Trainer

PROGRAMS = Path(__file__).parent / "programs"
# For a machine that is busy with other things: MPICH's ranks keep a core busy while they wait.
JOB_SECONDS = 500
ELSEWHERE = ["mpich on one host", "this MPI on three hosts", "mpich on three hosts"]


@pytest.fixture
def runner(request: pytest.FixtureRequest, mpirun: MpiRunner) -> MpiRunner:
    """Runs jobs with the library and on the hosts that the test's parameter names."""
    library, _, number = request.param.partition(" on ")
    if library == "mpich":
        mpich.require()
    hosts = request.getfixturevalue("hosts") if number == "three hosts" else None
    if library == "mpich":
        return MpiRunner(mpich.LAUNCHER, environment=mpich.ENVIRONMENT, hosts=hosts)
    return MpiRunner(mpirun.launcher, hosts=hosts)


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
def test_a_server_for_each_host_and_no_mapping_between_them(
    runner: MpiRunner, tmp_path: Path, tiny_corpus: TinyCorpus
) -> None:
    train = Trainer(runner, tmp_path, tiny_corpus)
    run = train(6, "stop.updates=4", "roles.servers=per-device", "exchange.window=auto")
    assert (run.summary["roles"]["servers"], run.summary["roles"]["workers"]) == (3, 3)
    roles = [line.strip() for line in run.job.stdout.splitlines() if " on ranks " in line]
    assert all("servers on ranks" in line and "workers on ranks" in line for line in roles) and len(roles) == 3
    refused = train(6, "name=mapped", "roles.servers=per-device", "exchange.window=mapped", check=False)
    assert refused.job.returncode == 2 and "Traceback" not in refused.job.stderr
    assert refused.job.stderr.count("exchange.window=mapped: ranks map the memory of their own host alone") == 1
