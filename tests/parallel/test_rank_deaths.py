"""A rank that is killed ends its job: soon, with a message, on every host; with Open MPI and with MPICH."""

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpich
import pytest
from runners import MpiRunner
from running_job import RunningJob
from test_signals import write_config
from tiny_training import TinyCorpus

from hpcasync.bench.network_hosts import NetworkHosts
from hpcasync.exit_codes import RANK_LOST
from hpcasync.launch.mpirun import Flavour

# Servers 0 and 1, and worker 0; on three hosts one on each.
NAMES = ("server 0", "server 1", "worker 0")
NUM_RANKS = len(NAMES)
OVERRIDES = ("roles.servers=2", "accumulate.global=1", "stop={updates: 1000000}", "checkpoint.every=2")
WITH_FAULT_TOLERANCE = ("--with-ft", "mpi")
# The job's end takes two seconds on an idle machine. Ten times that, and as much for what else may be running.
END_SECONDS = 60


@dataclass(frozen=True)
class Place:
    """Where a job runs, and with which MPI."""

    flavour: Flavour
    environment: Mapping[str, str]
    hosts: NetworkHosts | None

    @property
    def options(self) -> tuple[str, ...]:
        """Of `launch`."""
        return () if self.hosts is None else self.hosts.mpirun_options(self.flavour, NUM_RANKS)

    def job(self, directory: Path, corpus: TinyCorpus, *overrides: str, options: tuple[str, ...] = ()) -> RunningJob:
        """Start one."""
        return RunningJob(
            NUM_RANKS,
            write_config(directory, corpus),
            *overrides,
            options=(*self.options, *options),
            log=directory / "log",
            environment=self.environment,
            hosts=self.hosts,
        )


@pytest.fixture
def place(request: pytest.FixtureRequest, mpirun: MpiRunner) -> Place:
    """The library and the hosts that the test's parameter names."""
    library, _, number = request.param.partition(" on ")
    if library == "mpich":
        mpich.require()
    if library == "openmpi" and mpirun.launcher.flavour != "openmpi":
        pytest.skip("this environment has another MPI")
    hosts = request.getfixturevalue("hosts") if number == "three hosts" else None
    return Place(library, mpich.ENVIRONMENT if library == "mpich" else {}, hosts)


def wait_for_training(job: RunningJob) -> None:
    """Until there is a checkpoint to go on from."""
    job.wait_until(lambda: job.newest, "a checkpoint")


def check_end(job: RunningJob, died: float) -> None:
    """The exit code, and that nothing is left anywhere; prints how long it took since `died` (time.monotonic)."""
    assert job.wait(END_SECONDS) == RANK_LOST, job.output
    ended = time.monotonic()
    wait_for_none(job.processes)
    print(f"the job ended {ended - died:.2f} s after the death, its last process {time.monotonic() - died:.2f} s")


def wait_for_none(find: Callable[[], Collection[Any]]) -> None:
    """Until nothing is found any more."""
    deadline = time.monotonic() + END_SECONDS
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, left


@pytest.mark.parametrize(
    ("place", "victim", "options"),
    [
        ("mpich on one host", 2, ()),
        ("openmpi on three hosts", 0, ()),
        ("openmpi on three hosts", 2, WITH_FAULT_TOLERANCE),
        ("mpich on three hosts", 1, ()),
        pytest.param("mpich on one host", 0, (), marks=pytest.mark.slow),
        pytest.param("openmpi on one host", 2, (), marks=pytest.mark.slow),
        pytest.param("openmpi on one host", 0, (), marks=pytest.mark.slow),
        pytest.param("openmpi on three hosts", 1, (), marks=pytest.mark.slow),
        pytest.param("openmpi on three hosts", 2, (), marks=pytest.mark.slow),
        pytest.param("openmpi on three hosts", 0, WITH_FAULT_TOLERANCE, marks=pytest.mark.slow),
        pytest.param("mpich on three hosts", 0, (), marks=pytest.mark.slow),
        pytest.param("mpich on three hosts", 2, (), marks=pytest.mark.slow),
    ],
    indirect=["place"],
)
def test_a_killed_rank_ends_the_job(
    place: Place, tmp_path: Path, tiny_corpus: TinyCorpus, victim: int, options: tuple[str, ...]
) -> None:
    with place.job(tmp_path, tiny_corpus, *OVERRIDES, options=options) as job:
        wait_for_training(job)
        process = job.rank(victim)
        process.kill()
        check_end(job, time.monotonic())
    # On a machine where `launch` was late, others that MPI has killed may be named beside it.
    [named] = re.findall(r"hpcasync: (.*) has died, and the job cannot go on without it: it ends\n", job.output)
    assert re.search(rf"{NAMES[victim]} \(rank {victim} on \S+, process {process.pid}\)", named), job.output
    assert f"the job ended with code {RANK_LOST}; `--resume` goes on from {job.run_dir}/checkpoints/" in job.output


@pytest.mark.parametrize("place", ["openmpi on three hosts"], indirect=True)
def test_a_killed_daemon_of_mpirun_ends_the_job(place: Place, tmp_path: Path, tiny_corpus: TinyCorpus) -> None:
    """Open MPI's mpirun ends with 0 then."""
    with place.job(tmp_path, tiny_corpus, *OVERRIDES) as job:
        wait_for_training(job)
        daemon = job.rank(2).parent()
        assert daemon is not None and daemon.name() == "prted"
        daemon.kill()
        check_end(job, time.monotonic())
    assert re.search(r"hpcasync: (mpirun has ended before the ranks had: |.*\) has died, and the job )", job.output)
    assert f"the job ended with code {RANK_LOST}; `--resume` goes on from " in job.output


@pytest.mark.parametrize("place", ["openmpi on three hosts"], indirect=True)
def test_workers_cannot_be_survived_on_several_hosts(place: Place, tmp_path: Path, tiny_corpus: TinyCorpus) -> None:
    with place.job(tmp_path, tiny_corpus, *OVERRIDES, options=("--survive-workers",)) as job:
        assert job.wait() == 2, job.output
    reason = "--survive-workers: the ranks are on several hosts, where MPI cannot end a job that has lost one"
    assert job.output.count(reason) == 1 and "Traceback" not in job.output


@pytest.mark.slow
@pytest.mark.parametrize("place", ["openmpi on three hosts", "mpich on three hosts"], indirect=True)
def test_a_host_that_is_gone_ends_the_job(place: Place, tmp_path: Path, tiny_corpus: TinyCorpus) -> None:
    """Nothing is heard of it any more, as when it has lost its power; its rank notices that, too.

    Open MPI's daemon on it ends when it can be reached again.
    """
    assert place.hosts is not None
    with place.job(tmp_path, tiny_corpus, *OVERRIDES) as job:
        wait_for_training(job)
        place.hosts.disconnect("n2")
        died = time.monotonic()
        try:
            assert job.wait(2 * END_SECONDS) == RANK_LOST, job.output
            wait_for_none(job.ranks)
            print(f"the job ended {time.monotonic() - died:.2f} s after its host was gone")
        finally:
            place.hosts.connect("n2")
        wait_for_none(job.processes)
    assert re.search(r"worker 0 \(rank 2 on n2, process \d+\) cannot be reached any more, and the job", job.output)
