"""Windows larger than 2 GiB on real ranks; see the program for what is checked."""

import shutil
from pathlib import Path

import psutil
import pytest
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_big_windows.py"


def run(mpirun: MpiRunner, placement: str, what: str, *, free_gib: float) -> None:
    """`free_gib`: the engine refuses windows that memory could not hold, sparse or not."""
    free_bytes = min(psutil.virtual_memory().available, shutil.disk_usage("/dev/shm").free)
    if free_bytes < free_gib * 2**30:
        pytest.skip(f"needs {free_gib} GiB free in memory and /dev/shm, and there are {free_bytes / 2**30:.1f}")
    assert "big windows passed" in mpirun.python(2, PROGRAM, placement, what).stdout


@pytest.mark.parametrize("placement", ["shared", "scattered"])
def test_offsets_beyond_two_to_the_31(mpirun: MpiRunner, placement: str) -> None:
    run(mpirun, placement, "window", free_gib=1)


@pytest.mark.parametrize("placement", ["shared", "scattered"])
def test_slots_of_more_than_two_gib(mpirun: MpiRunner, placement: str) -> None:
    run(mpirun, placement, "link", free_gib=8)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["shared", "scattered"])
def test_transfers_of_more_than_two_gib(mpirun: MpiRunner, placement: str) -> None:
    run(mpirun, placement, "transfer", free_gib=8)
