"""Fixtures of all tests, and how several processes share the tests (pytest-xdist)."""

import atexit
import gc
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from forked_commands import ForkedCommands
from forked_ranks import ForkedRanks
from runners import RANK_ENVIRONMENT, CliRunner, MpiRunner
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from hpcasync.launch.locate import find_launcher

# Of all that tests start: jobs share the cores, and where a worker has two threads one that spins keeps a core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The same examples each time, however long they take.
hypothesis.settings.register_profile(
    "any-machine", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")

# What is imported and collected stays: to look for garbage in it takes a third of the time until the first test, and
# time in all of them.
gc.disable()
atexit.register(gc.freeze)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """From now on there may be garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedRanks | None]:
    """What ranks of the mpirun of this environment are forks of; None: they are started one by one."""
    if find_launcher().flavour != "openmpi":  # hydra talks to its ranks by descriptors that they inherit
        yield None
        return
    forked = ForkedRanks(tmp_path_factory.mktemp("ranks"), {**os.environ, **RANK_ENVIRONMENT})
    yield forked
    forked.close()


@pytest.fixture(scope="session")
def mpirun(forked: ForkedRanks | None) -> MpiRunner:
    """Run MPI jobs with the mpirun of this environment."""
    return MpiRunner(find_launcher(), forked=forked)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCommands]:
    """Run commands as forks of a process that has imported all that they do."""
    with ForkedCommands(tmp_path_factory.mktemp("commands")) as commands:
        yield commands


@pytest.fixture(scope="session")
def run_cli() -> CliRunner:
    """Run the command line."""
    return CliRunner()


class _Chains(LoadScopeScheduling):
    """Each file goes to the process that has time for it; those that share a costly beginning go to one.

    The tests of SLURM share a cluster, trainings share ranks that stay (`parallel/warm_job.py`).
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith("tests/system"):
            return "system"
        return "trainings" if file.startswith("tests/parallel") and _needs_warm_ranks(file) else file


@cache
def _needs_warm_ranks(file: str) -> bool:
    text = (Path(__file__).parents[1] / file).read_text()
    return "trainer: Trainer" in text or "warm: WarmJob" in text


@pytest.hookimpl
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than cores, for many tests wait for something; with more than four the last file would be waited for."""
    return min(4, len(os.sched_getaffinity(0)) + 1)


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Who runs what. (The groups of pytest-xdist 3.8.0, `xdist_group`, do nothing under pytest 9.2.0.)"""
    # In their order, which has the many small files last: by their numbers of tests, files of one long test would be.
    config.option.loadscopereorder = False
    return _Chains(config, log)
