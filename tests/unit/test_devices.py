"""Threads of a rank: its share of the cores that it may run on."""

from collections.abc import Sequence
from typing import Any

from hpcasync.comm.roles import Roles, assign_roles
from hpcasync.config.schema import parse_config
from hpcasync.train.machine.devices import choose_threads as choose
from hpcasync.train.machine.gpus import Gpu

ALL = frozenset(range(8))


def config(**roles: Any) -> Any:
    return parse_config({"data": {"path": "x"}, "stop": {"updates": 1}, "roles": roles}, "test")


def choose_threads(config: Any, roles: Roles, rank: int, cores: Sequence[frozenset[int]], gpus: str = "") -> int:
    """`gpus`: a 1 for each rank that has one."""
    gpu = Gpu("0", "uuid", "name", 1)
    return choose(config, roles, rank, cores, [gpu if each == "1" else None for each in gpus.ljust(len(cores))])


def test_a_server_has_one_thread_where_a_second_would_share_a_core() -> None:
    roles = assign_roles(["a"] * 3, 1)
    three = [frozenset(range(3))] * 3
    assert choose_threads(config(), roles, 0, three) == 1
    assert choose_threads(config(server_threads=2), roles, 0, three) == 2
    two = [frozenset(range(2))] * 3
    assert choose_threads(config(), roles, 0, two) == 2, "there all share"


def test_servers_on_the_cpu_have_what_workers_on_gpus_leave() -> None:
    roles = assign_roles(["a"] * 4, 2)
    many = [frozenset(range(40))] * 4
    assert [choose_threads(config(), roles, rank, many) for rank in (0, 1)] == [2, 2]
    workers = "".join("01"[rank in roles.worker_ranks] for rank in range(4))
    assert [choose_threads(config(), roles, rank, many, workers) for rank in roles.server_ranks] == [17, 17]
    assert choose_threads(config(), roles, roles.server_ranks[0], many, "1111") == 2
    assert choose_threads(config(), roles, roles.server_ranks[0], [ALL] * 4, workers) == 2
    assert choose_threads(config(server_threads=1), roles, roles.server_ranks[0], many, workers) == 1


def test_workers_that_may_use_the_same_cores_share_them() -> None:
    roles = assign_roles(["a"] * 4, 1)
    assert [choose_threads(config(), roles, rank, [ALL] * 4) for rank in range(4)] == [2, 2, 2, 2]


def test_workers_that_are_bound_apart_do_not_share() -> None:
    roles = assign_roles(["a"] * 3, 1)
    cores = [ALL, frozenset({0, 1, 2, 3}), frozenset({4, 5, 6, 7})]
    assert [choose_threads(config(), roles, rank, cores) for rank in (1, 2)] == [4, 4]


def test_the_same_core_numbers_of_another_host_are_other_cores() -> None:
    roles = assign_roles(["a", "a", "b"], 1)
    assert [choose_threads(config(), roles, rank, [ALL] * 3) for rank in (1, 2)] == [8, 8]


def test_there_is_at_least_one_thread_and_what_is_configured_counts() -> None:
    roles = assign_roles(["a"] * 5, 1)
    two = [frozenset({0, 1})] * 5
    assert choose_threads(config(), roles, 1, two) == 1
    assert choose_threads(config(worker_threads=3, server_threads=2), roles, 1, two) == 3
    assert choose_threads(config(worker_threads=3, server_threads=2), roles, 0, two) == 2
