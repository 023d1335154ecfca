"""Windows on real ranks; see the program for what is checked."""

from pathlib import Path

import pytest
from runners import MpiRunner

PROGRAMS = Path(__file__).parent / "programs"


@pytest.mark.parametrize(("num_ranks", "placement"), [(3, "nodes"), (3, "scattered")])
def test_windows(mpirun: MpiRunner, num_ranks: int, placement: str) -> None:
    assert "windows passed" in mpirun.python(num_ranks, PROGRAMS / "check_windows.py", placement, timeout=300).stdout


def test_a_pull_between_nodes_is_one_version(mpirun: MpiRunner) -> None:
    assert "publication passed" in mpirun.python(3, PROGRAMS / "check_publication.py", timeout=300).stdout
