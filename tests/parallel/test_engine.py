"""Servers and workers without a translation model, in many sizes of job; see the program for what is checked."""

from pathlib import Path

from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_engine.py"


def test_engine(mpirun: MpiRunner) -> None:
    job = mpirun.python(6, PROGRAM, "all", timeout=400)
    assert "engine passed" in job.stdout
