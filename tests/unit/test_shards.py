"""Cutting the flat vector: every element in one shard, aligned bounds, equal sizes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.comm.shards import ALIGNMENT, Shard, cut_shards


@given(num_elements=st.integers(1, 10**9), num_servers=st.integers(1, 64))
def test_shards_cover_the_vector_once_with_aligned_bounds_and_equal_sizes(num_elements: int, num_servers: int) -> None:
    if num_elements <= ALIGNMENT * (num_servers - 1):
        with pytest.raises(ValueError, match=f"{num_elements} parameters"):
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


def test_bounds_worked_out_by_hand() -> None:
    # 100 elements are 7 pieces of 16; 7 * index // 3 gives the pieces 0, 2, 4, 7.
    assert cut_shards(100, 3) == [Shard(0, 32), Shard(32, 64), Shard(64, 100)]
    assert cut_shards(5, 1) == [Shard(0, 5)]


def test_more_servers_than_pieces() -> None:
    with pytest.raises(ValueError, match="32 parameters cannot be cut into 3 shards"):
        cut_shards(32, 3)
