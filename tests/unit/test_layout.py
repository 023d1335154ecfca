"""Nothing in a rank's window lies over anything else, everything is inside and begins on a cache line."""

from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from hpcasync.comm.roles import Roles
from hpcasync.comm.shards import cut_shards
from hpcasync.errors import UserError
from hpcasync.ps.transport.window_layout import Layout, Place, require_servers


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    num_servers, num_workers = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    size = num_servers + num_workers
    order = draw(st.permutations(range(size)))
    roles = Roles(("host",) * size, tuple(order[:num_servers]), tuple(order[num_servers:]))
    shards = cut_shards(draw(st.integers(16 * num_servers, 5000)), num_servers)
    return Layout(
        roles,
        tuple(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))),
        shards,
        num_slots=draw(st.integers(1, 3)),
        num_spare=draw(st.integers(1, 2)),
        record_bytes=64 * draw(st.integers(1, 3)),
        parameter_bytes=draw(st.sampled_from((2, 4))),
        slot_bytes=[draw(st.integers(1, 3)) * shard.size for shard in shards],
        is_in_place=draw(st.booleans()),
        is_mapped=draw(st.booleans()),
    )


def summing(layout: Layout) -> Layout:
    """The same with sums of nodes, each of which has a server."""
    servers = layout.roles.server_ranks
    nodes = [node % len(servers) for node in layout.nodes]
    for number, rank in enumerate(servers):
        # Two of them share a node, if there are three or more.
        nodes[rank] = min(number, max(1, len(servers) - 2)) if len(servers) > 1 else 0
    num_nodes = len({nodes[rank] for rank in servers})
    nodes = [node % num_nodes for node in nodes]
    return replace(layout, nodes=tuple(nodes), is_in_place=True, sums_hosts=True)


Window = tuple[int, bool]  # of a rank; whether it is the one of MPI beside mapped memory


def regions(layout: Layout) -> list[tuple[Window, int, int]]:
    """(window, begin, end) of everything, in bytes; in place, a vector is the parts of all servers."""
    servers, workers = list(enumerate(layout.roles.server_ranks)), range(len(layout.roles.worker_ranks))
    found = []
    for server, rank in servers:
        for version in range(2):
            begin = layout.buffer_offset(server, version)
            found.append(((rank, False), begin, begin + layout.shards[server].size * layout.parameter_bytes))
    for worker in workers:
        for sequence in range(layout.num_slots):
            begin = layout.record_offset(worker, sequence)
            found.append(((layout.roles.server_ranks[0], layout.is_mapped), begin, begin + layout.record_bytes))
        for server, _ in servers:
            is_in_place = layout.lies_with_worker(server, worker)
            for sequence in range(layout.num_vectors(worker) if is_in_place else layout.num_slots):
                place = layout.gradient_place(server, worker, sequence)
                size = 4 * layout.shards[server].size if is_in_place else layout.slot_bytes[server]
                found.append(((place.rank, place.is_beside), place.offset, place.offset + size))
    return sorted(found)


def window_bytes(layout: Layout, window: Window) -> int:
    rank, is_beside = window
    return layout.beside_bytes(rank) if is_beside else layout.window_bytes(rank)


@given(layouts())
def test_nothing_overlaps(layout: Layout) -> None:
    found = regions(layout)
    for (window, _, end), (next_window, begin, _) in pairwise(found):
        assert window != next_window or end <= begin
    for window, begin, end in found:
        assert begin % 64 == 0 and end <= window_bytes(layout, window)


@given(layouts())
def test_windows_hold_little_else(layout: Layout) -> None:
    """A worker's vectors are whole, though only servers of its node read their shards there."""
    found, workers = regions(layout), layout.roles.worker_ranks
    found = [region for region in found if region[0][0] not in workers]
    used = sum(end - begin for _, begin, end in found)
    every = [(rank, is_beside) for rank in layout.roles.server_ranks for is_beside in (False, True)]
    assert sum(window_bytes(layout, window) for window in every) - used < 64 * (len(found) + 1)
    for worker, rank in enumerate(workers):
        vector_bytes = -(-4 * layout.shards[-1].stop // 64) * 64
        assert layout.window_bytes(rank) == layout.num_vectors(worker) * vector_bytes
        assert layout.num_vectors(worker) in (0, layout.num_slots + layout.num_spare)


@given(layouts(), st.integers(1, 1000))
def test_a_gradient_is_in_place_for_servers_of_its_node(layout: Layout, sequence: int) -> None:
    """Else it is written to the server; from another node by way of MPI."""
    for worker, rank in enumerate(layout.roles.worker_ranks):
        begin = layout.vector_offset(sequence)
        for server, (owner, shard) in enumerate(zip(layout.roles.server_ranks, layout.shards, strict=True)):
            place, is_near = layout.gradient_place(server, worker, sequence), layout.nodes[rank] == layout.nodes[owner]
            if is_near and layout.is_in_place:
                assert place == Place(rank, begin + 4 * shard.start)
            else:
                assert place.rank == owner and place.is_beside == (layout.is_mapped and not is_near)


@given(layouts())
def test_every_nodes_gradients_are_summed_once_for_every_server(layout: Layout) -> None:
    layout = summing(layout)
    servers = range(len(layout.shards))
    for server in servers:
        own = layout.nodes[layout.roles.server_ranks[server]]
        assert layout.summing_server(server, own) is None
        for node in {layout.nodes[rank] for rank in layout.roles.server_ranks} - {own}:
            summing_server = layout.summing_server(server, node)
            assert summing_server is not None and layout.nodes[layout.roles.server_ranks[summing_server]] == node
            assert [other for other in servers if server in layout.summed_by(other) and
                    layout.nodes[layout.roles.server_ranks[other]] == node] == [summing_server]  # fmt: skip
    for worker, rank in enumerate(layout.roles.worker_ranks):
        assert all(layout.gradient_place(server, worker, 1).rank == rank for server in servers)


def test_servers_of_a_node_share_the_sums_for_others() -> None:
    """As servers are spread: in turn over the nodes."""
    roles = Roles(("a", "b") * 4, (0, 1, 2, 3), (4, 5, 6, 7))
    layout = Layout(roles, (0, 1) * 4, cut_shards(256, 4), 1, 1, 64, 4, [256] * 4, is_in_place=True, sums_hosts=True)
    assert [layout.summed_by(server) for server in range(4)] == [[1], [0], [3], [2]]


def test_a_node_without_a_server_is_named() -> None:
    roles = Roles(("a", "b", "c"), (0, 1), (2,))
    require_servers(roles, (0, 1, 1))
    with pytest.raises(UserError, match=r"exchange.host_sums needs a server on every host, and c \(rank 2\) has none"):
        require_servers(roles, (0, 1, 2))
