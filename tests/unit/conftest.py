"""Fixtures that several unit tests share."""

import pytest
from tiny_run import TinyRun, make_tiny_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A trained model with its run directory and corpus; read it, or work on a copy."""
    return make_tiny_run(tmp_path_factory.mktemp("tiny"))
