"""Fixtures of all tests."""

import pytest
from runners import CliRunner, MpiRunner

from hpcasync.launch.locate import find_launcher


@pytest.fixture(scope="session")
def mpirun() -> MpiRunner:
    """Run MPI jobs with the mpirun of this environment."""
    return MpiRunner(find_launcher())


@pytest.fixture(scope="session")
def run_cli() -> CliRunner:
    """Run the command line."""
    return CliRunner()
