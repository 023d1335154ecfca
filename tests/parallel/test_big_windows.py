"""Windows larger than 2 GiB on real ranks; see the program for what is checked."""

import shutil
from pathlib import Path

import psutil
import pytest
from runners import MpiRunner

PROGRAM = Path(__file__).parent / "programs" / "check_big_windows.py"


# The engine refuses windows that memory could not hold, sparse or not: those of `link` have 8.02 GiB. Other tests need
# some meanwhile.
FREE_BYTES = 12 << 30


@pytest.fixture(autouse=True)
def room() -> None:
    free_bytes = min(psutil.virtual_memory().available, shutil.disk_usage("/dev/shm").free)
    if free_bytes < FREE_BYTES:
        pytest.skip(f"needs {FREE_BYTES >> 30} GiB free in memory and /dev/shm; there are {free_bytes / 2**30:.1f}")


@pytest.mark.parametrize("placement", ["shared", "scattered"])
def test_offsets_and_slots_beyond_two_to_the_31(mpirun: MpiRunner, placement: str) -> None:
    assert "big windows passed" in mpirun.python(2, PROGRAM, placement, "window", "link", timeout=300).stdout


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["shared", "scattered"])
def test_transfers_of_more_than_two_gib(mpirun: MpiRunner, placement: str) -> None:
    assert "big windows passed" in mpirun.python(2, PROGRAM, placement, "transfer", timeout=600).stdout
