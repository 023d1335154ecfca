"""Fixtures of the system tests."""

import os
from collections.abc import Iterator

import pytest
from slurm_cluster import SlurmCluster, reason_to_skip


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running SLURM. Where HPCASYNC_REQUIRE_SLURM=1 promises one, its absence is a failure, not a skip."""
    reason = reason_to_skip()
    if reason and os.environ.get("HPCASYNC_REQUIRE_SLURM") == "1":
        pytest.fail(f"HPCASYNC_REQUIRE_SLURM=1, but {reason}")
    if reason:
        pytest.skip(reason)
    cluster = SlurmCluster()
    with cluster:
        yield cluster
    assert cluster.left_behind == []
