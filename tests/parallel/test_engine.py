"""Servers and workers without a translation model, in many sizes of job; see the program for what is checked."""

from pathlib import Path

import pytest
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_engine.py"


@pytest.mark.parametrize("choice", ["all", "mapped", "mixed", "sums"])
def test_engine(mpirun: MpiRunner, choice: str) -> None:
    job = mpirun.python(6, PROGRAM, choice, timeout=400)
    assert "engine passed" in job.stdout
