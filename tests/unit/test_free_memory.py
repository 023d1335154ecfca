"""Limits of control groups count, those of groups above too, and what can be given back is free."""

from pathlib import Path

import psutil
import pytest

from hpcasync.comm.free_memory import free_memory, group_directories, left_in

GIB = 2**30


def make_group(directory: Path, files: tuple[str, str], limit: str, usage: int, statistics: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / files[0]).write_text(f"{limit}\n")
    (directory / files[1]).write_text(f"{usage}\n")
    (directory / "memory.stat").write_text(statistics)
    return directory


V2, V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


@pytest.mark.parametrize(
    ("files", "limit", "statistics", "left"),
    [
        (V2, str(4 * GIB), "anon 5\ninactive_file 1073741824\n", 2 * GIB),
        (V2, "max", "anon 5\n", None),
        (V1, str(4 * GIB), "cache 5\ntotal_inactive_file 0\n", GIB),
        (V1, str(GIB), "cache 5\n", 0),
    ],
)
def test_what_a_group_leaves(
    tmp_path: Path, files: tuple[str, str], limit: str, statistics: str, left: int | None
) -> None:
    assert left_in(make_group(tmp_path / "group", files, limit, 3 * GIB, statistics)) == left


def test_a_group_that_cannot_be_seen_limits_nothing(tmp_path: Path) -> None:
    assert left_in(tmp_path / "missing") is None


def test_the_groups_above_count_in_both_versions(tmp_path: Path) -> None:
    membership = "9:cpu,cpuacct:/job\n4:memory:/slurm/job_7\n0::/system/user.slice\n"
    assert group_directories(membership, tmp_path) == [
        tmp_path / "memory/slurm/job_7",
        tmp_path / "memory/slurm",
        tmp_path / "memory",
        tmp_path / "system/user.slice",
        tmp_path / "system",
        tmp_path,
    ]


def test_this_process_has_no_more_than_its_host() -> None:
    assert 0 < free_memory() <= psutil.virtual_memory().total
