"""Cutting the flat vector: every element in one shard, aligned bounds, equal costs, nothing cut that is whole."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.comm.shards import ALIGNMENT, Shard, Stretch, cost_of_dearest, cut_shards
from hpcasync.errors import UserError


@given(num_elements=st.integers(1, 10**9), num_servers=st.integers(1, 64))
def test_shards_cover_the_vector_once_with_aligned_bounds_and_equal_sizes(num_elements: int, num_servers: int) -> None:
    if num_elements <= ALIGNMENT * (num_servers - 1):
        with pytest.raises(UserError, match=f"{num_elements:,} parameters"):
            cut_shards(num_elements, num_servers)
        return
    shards = cut_shards(num_elements, num_servers)
    assert len(shards) == num_servers
    assert shards[0].start == 0 and shards[-1].stop == num_elements
    assert all(left.stop == right.start for left, right in pairwise(shards))
    assert all(shard.start % ALIGNMENT == 0 and shard.size > 0 for shard in shards)
    # Pieces of 64 bytes differ by at most one; the last shard may end within its last piece.
    num_pieces = [-(-shard.size // ALIGNMENT) for shard in shards]
    assert max(num_pieces) - min(num_pieces) <= 1


@st.composite
def stretches(draw: st.DrawFn) -> list[Stretch]:
    """Of one size or another, aligned or not."""
    unit = draw(st.sampled_from([1, ALIGNMENT]))
    drawn = draw(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 90), st.booleans()), min_size=1, max_size=12))
    stops = accumulate(size * unit for size, _, _ in drawn)
    return [Stretch(stop, cost, is_whole) for stop, (_, cost, is_whole) in zip(stops, drawn, strict=True)]


def costs(parts: list[Stretch]) -> list[float]:
    """Of each element."""
    starts = [0, *(part.stop for part in parts)]
    return [part.cost for start, part in zip(starts, parts, strict=False) for _ in range(start, part.stop)]


def allowed_borders(parts: list[Stretch]) -> list[int]:
    num_elements = parts[-1].stop
    bounds = list(pairwise([0, *(part.stop for part in parts)]))
    inside = {
        position
        for (start, stop), part in zip(bounds, parts, strict=True)
        if part.is_whole
        for position in range(start + 1, stop)
    }
    return [position for position in range(0, num_elements, ALIGNMENT) if position not in inside] + [num_elements]


@given(parts=stretches(), num_servers=st.integers(1, 8))
def test_what_is_whole_is_not_cut_and_costs_are_shared(parts: list[Stretch], num_servers: int) -> None:
    num_elements, borders, by_element = parts[-1].stop, allowed_borders(parts), costs(parts)
    most = len(borders) - 1
    if num_servers > most:
        with pytest.raises(UserError, match=f"into {num_servers} shards.* use {most} server"):
            cut_shards(num_elements, num_servers, parts)
        num_servers = most
    shards = cut_shards(num_elements, num_servers, parts)
    assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
    assert (shards[0].start, shards[-1].stop, len(shards)) == (0, num_elements, num_servers)
    assert all(shard.size > 0 and shard.start in borders for shard in shards)
    paid = [sum(by_element[shard.start : shard.stop]) for shard in shards]
    mean = sum(paid) / num_servers
    assert cost_of_dearest(shards, parts) == pytest.approx(max(paid) / mean)
    # Nothing smaller can be moved to another shard.
    largest = max(sum(by_element[start:stop]) for start, stop in pairwise(borders))
    assert max(paid) <= mean + 1.5 * largest


def test_bounds_worked_out_by_hand() -> None:
    # 100 elements are 7 pieces of 16, the last a quarter of one; a third is 33, of what is left after 32 half is 34.
    assert cut_shards(100, 3) == [Shard(0, 32), Shard(32, 64), Shard(64, 100)]
    assert cut_shards(5, 1) == [Shard(0, 5)]


def test_a_matrix_larger_than_an_equal_part_has_a_shard_of_its_own_and_the_rest_is_shared() -> None:
    parts = [Stretch(64), Stretch(128, cost=10.0, is_whole=True), Stretch(224), Stretch(288)]
    shards = cut_shards(288, 3, parts)
    # 64 + 640 + 160: a third is 288, to which 64 is nearer than 704; of the other 800 the matrix is more than half.
    assert shards == [Shard(0, 64), Shard(64, 128), Shard(128, 288)]
    assert cost_of_dearest(shards, parts) == pytest.approx(3 * 640 / 864)
    # Of two servers one has what comes before the matrix too: 704 is nearer to the half, 432, than 64 is.
    assert cut_shards(288, 2, parts) == [Shard(0, 128), Shard(128, 288)]


def test_dear_matrices_are_dealt_equally_and_cheap_elements_go_with_them() -> None:
    table, matrix, count = 16_000, 1024, 8
    parts = [Stretch(table), *(Stretch(table + (n + 1) * matrix, 60.0, is_whole=True) for n in range(count))]
    shards = cut_shards(parts[-1].stop, 4, parts)
    assert [shard.stop for shard in shards] == [table + n * matrix for n in (2, 4, 6, 8)]


def test_more_servers_than_pieces() -> None:
    with pytest.raises(UserError, match=r"32 parameters cannot be cut into 3 shards.*pieces of 16; use 2 servers"):
        cut_shards(32, 3)
    with pytest.raises(UserError, match=r"as a whole is not cut; use 1 server \(roles\.servers\) or fewer") as refused:
        cut_shards(64, 2, [Stretch(64, is_whole=True)])
    assert refused.value.everywhere
