"""Windows on real ranks; see the program for what is checked."""

from pathlib import Path

from runners import MpiRunner

PROGRAMS = Path(__file__).parent / "programs"


def test_windows(mpirun: MpiRunner) -> None:
    job = mpirun.python(3, PROGRAMS / "check_windows.py", "nodes", "scattered", timeout=300)
    assert job.stdout.splitlines() == ["windows passed, nodes", "windows passed, scattered"]


def test_a_pull_between_nodes_is_one_version(mpirun: MpiRunner) -> None:
    assert "publication passed" in mpirun.python(3, PROGRAMS / "check_publication.py", timeout=300).stdout
