"""Which pages are locked, and what is left and said where CUDA refuses; CUDA itself is stood in for."""

import mmap

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from hpcasync.comm import page_lock
from hpcasync.comm.page_lock import PageLock, describe_page_locks, page_ranges

PAGE = 4096


def test_neighbours_that_share_a_page_are_locked_together() -> None:
    assert page_ranges([(0, PAGE), (PAGE, 1)], PAGE) == [(0, PAGE), (PAGE, 2 * PAGE)]
    assert page_ranges([(3 * PAGE + 64, 100), (100, 200), (3 * PAGE + 200, 2 * PAGE)], PAGE) == [
        (0, PAGE),
        (3 * PAGE, 6 * PAGE),
    ]


@given(st.lists(st.tuples(st.integers(0, 50 * PAGE), st.integers(1, 5 * PAGE)), max_size=8))
def test_every_byte_is_locked_and_no_page_twice(segments: list[tuple[int, int]]) -> None:
    ranges = page_ranges(segments, PAGE)
    pages = [page for start, stop in ranges for page in range(start // PAGE, stop // PAGE)]
    assert all(start % PAGE == stop % PAGE == 0 for start, stop in ranges) and len(pages) == len(set(pages))
    for address, num_bytes in segments:
        assert any(start <= address and address + num_bytes <= stop for start, stop in ranges), "in one piece"


class Cuda:
    """Locks pages until it has `limit` ranges, as the CUDA runtime that torch hands out would."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.locked: list[int] = []

    def cudaHostRegister(self, start: int, num_bytes: int, flags: int) -> int:  # noqa: N802 - the name is CUDA's
        if len(self.locked) == self._limit:
            return 2
        self.locked.append(start)
        return 0

    def cudaHostUnregister(self, start: int) -> int:  # noqa: N802
        self.locked.remove(start)
        return 0

    def cudaGetErrorString(self, code: int) -> str:  # noqa: N802
        return {2: "out of memory"}[code]


@pytest.mark.parametrize("limit", [1, 2])
def test_all_is_locked_or_nothing(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(limit)
    monkeypatch.setattr(page_lock, "_cuda", lambda: cuda)
    whole = torch.empty(10 * mmap.PAGESIZE, dtype=torch.uint8)
    lock = PageLock([whole[:10], whole[-10:]], torch.device("cpu"))
    assert len(cuda.locked) == (2 if limit == 2 else 0)
    assert bool(lock.refusal) == (limit == 1)
    if lock.refusal:
        assert lock.refusal.startswith("CUDA locks no ") and lock.refusal.endswith(" bytes: out of memory")
    lock.free()
    assert not cuda.locked


def test_what_is_said() -> None:
    assert describe_page_locks({}) == ""
    assert describe_page_locks({1: "", 2: ""}) == ", page-locked for GPUs"
    said = describe_page_locks({1: "", 2: "out of memory", 3: "not permitted"})
    assert said == (", not page-locked for rank 2, 3, whose GPU copies by way of other host memory: out of memory")
