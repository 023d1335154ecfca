"""Cores of their own for the ranks of a host."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcasync.comm.roles import assign_roles
from hpcasync.train.machine.cores import Nodes, are_own, describe_cores, numa_nodes, share_cores

ALL = frozenset(range(8))


def shares(
    hosts: str, num_servers: int, threads: list[int], cores: list[frozenset[int]], nodes: Nodes | None = None
) -> list[set[int]]:
    roles, size = assign_roles(list(hosts), num_servers), len(cores)
    return [set(share) for share in share_cores(roles, threads, cores, [True] * size, [nodes or {}] * size)]


def test_servers_come_first_and_workers_share_the_rest() -> None:
    assert shares("aaa", 1, [1, 3, 3], [ALL] * 3) == [{0}, {1, 2, 3, 4}, {5, 6, 7}]


def test_ranks_keep_to_a_numa_node_where_they_can(tmp_path: Path) -> None:
    """Cores and their hyperthreads are numbered as servers of two sockets do it."""
    for node, cores in enumerate(("0-1,4-5\n", "2-3,6,7\n", "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cores)
    nodes = numa_nodes(tmp_path)
    assert nodes == {0: 0, 1: 0, 4: 0, 5: 0, 2: 1, 3: 1, 6: 1, 7: 1}
    assert shares("aa", 0, [4, 4], [ALL] * 2, nodes) == [{0, 1, 4, 5}, {2, 3, 6, 7}]
    assert shares("aaa", 1, [1, 3, 4], [ALL] * 3, nodes) == [{0}, {1, 4, 5, 2}, {3, 6, 7}]
    assert numa_nodes(tmp_path / "none") == {}


def test_ranks_with_a_gpu_are_given_cores_near_to_it() -> None:
    """A server beside each GPU; the GPU of node 1 comes first on this host."""
    nodes = {core: core // 4 for core in ALL}
    roles = assign_roles(list("aaaa"), 2, "first")
    near: list[int | None] = [1, 0, 1, 0]
    dealt = share_cores(roles, [1, 1, 3, 3], [ALL] * 4, [True] * 4, [nodes] * 4, near)
    assert dealt == [{4}, {0}, {5, 6, 7}, {1, 2, 3}]
    # Both workers' GPUs are near to node 0: its cores do not suffice.
    crowded = share_cores(roles, [1, 1, 3, 3], [ALL] * 4, [True] * 4, [nodes] * 4, [None, None, 0, 0])
    assert crowded == [{4}, {5}, {0, 1, 2}, {3, 6, 7}]
    # Nobody says where the GPU is, or it is near to none of the cores that the job has.
    for unknown in (None, 2):
        dealt = share_cores(roles, [1, 1, 3, 3], [ALL] * 4, [True] * 4, [nodes] * 4, [unknown] * 4)
        assert dealt == [{0}, {1}, {2, 3, 4}, {5, 6, 7}]


def test_each_host_is_dealt_out_for_itself() -> None:
    low, high = frozenset(range(4)), frozenset(range(10, 14))
    assert shares("aabb", 2, [1, 3, 1, 3], [low, low, high, high]) == [{0}, {1, 2, 3}, {10}, {11, 12, 13}]


def test_a_host_for_servers_alone() -> None:
    assert shares("ab", 1, [2, 8], [ALL, ALL]) == [{0, 1}, set(ALL)]


@pytest.mark.parametrize(
    ("threads", "cores"),
    [
        ([1, 8], [ALL, ALL]),  # more threads than cores
        ([1, 1], [frozenset({0, 1}), frozenset({2, 3})]),  # a scheduler has done it
    ],
)
def test_what_does_not_fit_or_is_done_already_stays(threads: list[int], cores: list[frozenset[int]]) -> None:
    assert shares("aa", 1, threads, cores) == [set(mine) for mine in cores]


@pytest.mark.parametrize(
    ("num_cores", "num_allocated", "expected"),
    [
        (8, 0, False),  # a workstation
        (8, 4, False),  # half of a node, and nothing that keeps the other half away
        (8, 8, True),
        (4, 0, True),  # a cpuset
        (4, 4, True),
    ],
)
def test_cores_are_the_jobs_own_where_something_says_so(num_cores: int, num_allocated: int, expected: bool) -> None:
    assert are_own(frozenset(range(num_cores)), num_of_host=8, num_allocated=num_allocated) is expected


def test_nothing_is_bound_where_others_may_compute() -> None:
    roles = assign_roles(list("aab"), 1)
    assert share_cores(roles, [1, 7, 2], [ALL, ALL, ALL], [True, False, True], [{}] * 3) == [ALL, ALL, ALL]


def test_says_what_was_decided() -> None:
    roles = assign_roles(list("aab"), 1)
    dealt = share_cores(roles, [1, 7, 2], [ALL, ALL, ALL], [True] * 3, [{}] * 3)
    assert describe_cores(roles, dealt) == ["cores of a: rank 0 0, rank 1 1-7", "cores of b: rank 2 0-7"]
    assert describe_cores(roles, [ALL] * 3)[0] == "cores of a: 8, shared by its 2 ranks"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_child_process_can_have_all_cores_again() -> None:
    child = "import os; from hpcasync.train.machine.cores import unbind; unbind(); print(len(os.sched_getaffinity(0)))"
    program = (
        "import os, subprocess, sys; from hpcasync.train.machine.cores import bind\n"
        "cores = sorted(os.sched_getaffinity(0))\n"
        "bind(frozenset(cores[:1]))\n"
        "assert os.sched_getaffinity(0) == {cores[0]}\n"
        f"assert int(subprocess.check_output([sys.executable, '-c', {child!r}])) == len(cores)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
