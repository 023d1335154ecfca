"""Nothing in a rank's window lies over anything else, everything is inside and begins on a cache line."""

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given

from hpcasync.comm.roles import Roles
from hpcasync.comm.shards import cut_shards
from hpcasync.ps.transport.window_layout import Layout


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    num_servers, num_workers = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    size = num_servers + num_workers
    order = draw(st.permutations(range(size)))
    roles = Roles(("host",) * size, tuple(order[:num_servers]), tuple(order[num_servers:]))
    shards = cut_shards(draw(st.integers(16 * num_servers, 5000)), num_servers)
    return Layout(
        roles,
        shards,
        num_slots=draw(st.integers(1, 3)),
        num_spare=draw(st.integers(1, 2)),
        record_bytes=64 * draw(st.integers(1, 3)),
        parameter_bytes=draw(st.sampled_from((2, 4))),
        slot_bytes=[draw(st.integers(1, 3)) * shard.size for shard in shards],
        is_in_place=draw(st.booleans()),
        are_records_apart=draw(st.booleans()),
    )


def regions(layout: Layout) -> list[tuple[int, int, int]]:
    """(rank, begin, end) of everything, in bytes; in place, a vector is the parts of all servers.

    Records that lie apart have rank -1.
    """
    servers, workers = list(enumerate(layout.roles.server_ranks)), range(len(layout.roles.worker_ranks))
    found = []
    for server, rank in servers:
        for version in range(2):
            begin = layout.buffer_offset(server, version)
            found.append((rank, begin, begin + layout.shards[server].size * layout.parameter_bytes))
    for worker in workers:
        for sequence in range(layout.num_slots):
            begin = layout.record_offset(worker, sequence)
            rank = -1 if layout.are_records_apart else layout.roles.server_ranks[0]
            found.append((rank, begin, begin + layout.record_bytes))
        for sequence in range(layout.num_vectors if layout.is_in_place else layout.num_slots):
            for server, _ in servers:
                rank, begin = layout.gradient_offset(server, worker, sequence)
                size = 4 * layout.shards[server].size if layout.is_in_place else layout.slot_bytes[server]
                found.append((rank, begin, begin + size))
    return sorted(found)


def window_bytes(layout: Layout, rank: int) -> int:
    return layout.window_bytes(rank) if rank >= 0 else layout.records_bytes(layout.roles.server_ranks[0])


@given(layouts())
def test_nothing_overlaps(layout: Layout) -> None:
    found = regions(layout)
    for (rank, _, end), (next_rank, begin, _) in pairwise(found):
        assert rank != next_rank or end <= begin
    for rank, begin, end in found:
        assert begin % 64 == 0 and end <= window_bytes(layout, rank)


@given(layouts())
def test_windows_hold_little_else(layout: Layout) -> None:
    used = sum(end - begin for _, begin, end in regions(layout))
    every = range(-1, len(layout.roles.hosts))
    assert sum(window_bytes(layout, rank) for rank in every) - used < 64 * len(regions(layout))


@given(layouts(), st.integers(1, 1000))
def test_a_gradient_in_place_is_one_vector(layout: Layout, sequence: int) -> None:
    for worker, rank in enumerate(layout.roles.worker_ranks):
        places = [layout.gradient_offset(server, worker, sequence) for server in range(len(layout.shards))]
        if layout.is_in_place:
            begin = layout.vector_offset(sequence)
            assert places == [(rank, begin + 4 * shard.start) for shard in layout.shards]
        else:
            assert [owner for owner, _ in places] == list(layout.roles.server_ranks)
