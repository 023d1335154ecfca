"""Fixtures of all tests, and how several processes share the tests (pytest-xdist)."""

import pytest
from runners import CliRunner, MpiRunner
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from hpcasync.launch.locate import find_launcher


@pytest.fixture(scope="session")
def mpirun() -> MpiRunner:
    """Run MPI jobs with the mpirun of this environment."""
    return MpiRunner(find_launcher())


@pytest.fixture(scope="session")
def run_cli() -> CliRunner:
    """Run the command line."""
    return CliRunner()


class _JobsInTurn(LoadScopeScheduling):
    """Jobs of many ranks run in one process, in turn, those of SLURM in one, other tests where there is time."""

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.split("/")[1]
        return folder if folder in ("parallel", "system") else nodeid


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Who runs what. (The groups of pytest-xdist 3.8.0, `xdist_group`, do nothing under pytest 9.2.0.)"""
    return _JobsInTurn(config, log)
