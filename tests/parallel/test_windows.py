"""Windows on real ranks; see the program for what is checked."""

from pathlib import Path

import pytest
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_windows.py"


@pytest.mark.parametrize(("num_ranks", "placement"), [(3, "nodes"), (3, "scattered")])
def test_windows(mpirun: MpiRunner, num_ranks: int, placement: str) -> None:
    assert "windows passed" in mpirun.python(num_ranks, PROGRAM, placement).stdout
