"""Which rank is a server: spread over hosts, stable, and a clear refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.comm.roles import assign_beside, assign_roles
from hpcasync.errors import UserError


def test_one_host() -> None:
    roles = assign_roles(["a"] * 5, 2)
    assert roles.server_ranks == (0, 1) and roles.worker_ranks == (2, 3, 4)
    assert roles.coordinator_rank == 0
    assert roles.is_server(1) and not roles.is_server(2)
    assert roles.describe() == ["a: servers on ranks 0-1, workers on ranks 2-4"]


def test_servers_are_spread_over_hosts() -> None:
    # By host: a has 0, 1, 2; b has 3, 4; c has 5. In turn: 0 3 5, then 1 4, then 2.
    hosts = ["a", "a", "a", "b", "b", "c"]
    assert assign_roles(hosts, 2).server_ranks == (0, 3)
    assert assign_roles(hosts, 4).server_ranks == (0, 3, 5, 1)
    assert assign_roles(hosts, 4).worker_ranks == (2, 4)
    assert assign_roles(hosts, 4).describe() == [
        "a: servers on ranks 0-1, workers on ranks 2",
        "b: servers on ranks 3, workers on ranks 4",
        "c: servers on ranks 5",
    ]


def test_hosts_in_turn_by_mpirun() -> None:
    roles = assign_roles(["a", "b", "a", "b"], 2)
    assert roles.server_ranks == (0, 1)
    assert roles.ranks_on_host("b") == [1, 3]
    assert roles.describe() == [
        "a: servers on ranks 0, workers on ranks 2",
        "b: servers on ranks 1, workers on ranks 3",
    ]


def test_a_server_beside_the_workers_of_each_device() -> None:
    hosts = ["a", "b", "a", "b", "a", "a", "a"]
    roles = assign_beside(hosts, {"a": 2, "b": 1})
    assert roles.server_ranks == (0, 2, 1) and roles.worker_ranks == (3, 4, 5, 6)
    with pytest.raises(UserError, match=r"b has 2 device\(s\) for servers and 2 rank\(s\): .* for example 4"):
        assign_beside(hosts, {"a": 2, "b": 2})


def test_synchronous_training_has_no_servers() -> None:
    roles = assign_roles(["a", "a"], 0)
    assert roles.server_ranks == () and roles.worker_ranks == (0, 1)
    assert roles.coordinator_rank == 0
    assert roles.describe() == ["a: workers on ranks 0-1"]


@pytest.mark.parametrize(("num_ranks", "num_servers"), [(1, 1), (3, 3), (2, 5)])
def test_no_rank_left_to_work(num_ranks: int, num_servers: int) -> None:
    with pytest.raises(UserError) as caught:
        assign_roles(["a"] * num_ranks, num_servers)
    message = str(caught.value)
    assert f"{num_ranks} MPI rank" in message and f"roles.servers={num_servers}" in message
    assert f"start {num_servers + 1} ranks or more" in message


@given(hosts=st.lists(st.sampled_from("abcd"), min_size=2, max_size=20), data=st.data())
def test_every_rank_has_one_role_and_hosts_share_the_servers(hosts: list[str], data: st.DataObject) -> None:
    num_servers = data.draw(st.integers(0, len(hosts) - 1))
    roles = assign_roles(hosts, num_servers)
    assert sorted(roles.server_ranks + roles.worker_ranks) == list(range(len(hosts)))
    assert len(roles.server_ranks) == num_servers
    assert list(roles.worker_ranks) == sorted(roles.worker_ranks)
    on_host = {host: sum(hosts[rank] == host for rank in roles.server_ranks) for host in set(hosts)}
    for host, number in on_host.items():
        # A host with fewer servers than another one has no rank left to give.
        assert number + 1 >= max(on_host.values()) or number == hosts.count(host)


def test_servers_on_the_first_ranks() -> None:
    roles = assign_roles(["c0", "c0", "g0", "g0"], 2, "first")
    assert (roles.server_ranks, roles.worker_ranks) == ((0, 1), (2, 3))
    assert assign_roles(["c0", "c0", "g0", "g0"], 2, "spread").server_ranks == (0, 2)
