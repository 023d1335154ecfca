"""Windows that do not fit are refused with the host, the sizes and a remedy."""

from dataclasses import replace

import pytest

from hpcasync.comm.roles import Roles
from hpcasync.comm.shards import cut_shards
from hpcasync.ps.transport.window_layout import Layout
from hpcasync.ps.transport.window_memory import (
    Copies,
    GpuShare,
    RankMemory,
    describe_gpu_shortage,
    describe_shortage,
    memory_of,
)

GIB = 2**30


def test_what_fits_is_no_shortage() -> None:
    assert describe_shortage("n1", 2 * GIB, 4 * GIB, 3 * GIB) is None
    assert describe_shortage("n1", 2 * GIB, 4 * GIB, None) is None


def test_too_little_memory_names_host_sizes_and_remedy() -> None:
    message = describe_shortage("n1", 10 * GIB, 4 * GIB, 3 * GIB)
    assert message is not None
    assert message.startswith("n1: windows of 10.0 GiB do not fit 4.0 GiB of free memory")
    assert "roles.servers" in message and "exchange.slots" in message


def test_too_little_shared_memory_names_the_file_system() -> None:
    message = describe_shortage("n1", 3 * GIB, 4 * GIB, GIB // 2)
    assert message is not None
    assert "0.5 GiB free in /dev/shm" in message and "remount" in message


def test_ranks_that_share_a_gpu_share_its_memory() -> None:
    own = [GpuShare("n1", "GPU-1", 3 * GIB, 4 * GIB), GpuShare("n1", "GPU-2", 3 * GIB, 4 * GIB)]
    assert describe_gpu_shortage([]) is None and describe_gpu_shortage(own) is None
    assert describe_gpu_shortage([*own, GpuShare("n2", "GPU-1", 3 * GIB, 4 * GIB)]) is None, "of another host"
    message = describe_gpu_shortage([*own, GpuShare("n1", "GPU-2", 2 * GIB, 3 * GIB)])
    assert message is not None
    assert message.startswith("n1: windows and shards of 5.0 GiB do not fit 3.0 GiB free on GPU GPU-2")
    assert "roles.servers" in message and "exchange.slots" in message


@pytest.mark.parametrize("is_mapped", [False, True])
def test_windows_lie_on_the_gpu_or_on_the_host_and_copies_beside_them(is_mapped: bool) -> None:
    layout = Layout(
        Roles(("n1",) * 3, (0,), (1, 2)),
        (0, 0, 2),  # the last worker is on another node
        cut_shards(1000, 1),
        num_slots=2,
        num_spare=1,
        record_bytes=64,
        parameter_bytes=2,
        slot_bytes=[4000],
        is_in_place=True,
        is_mapped=is_mapped,
    )
    copies = Copies(private_copies=3, mirrored_vectors=2, sum_bytes=4)
    server, near, far = (memory_of(layout, rank, "cuda", copies) for rank in range(3))
    buffers, vectors = 2 * 2048, 3 * 4032
    beside = 4 * 64 + 2 * 4032  # records, and slots of the worker that is not here
    assert server == (
        RankMemory(beside, 2000, buffers + 12_000) if is_mapped else RankMemory(beside + buffers, 2000, 12_000)
    )
    assert near == (RankMemory(0, 8192, vectors) if is_mapped else RankMemory(vectors, 8192))
    assert far == RankMemory(0, 8192)
    assert memory_of(layout, 0, "cpu", copies) == RankMemory(beside + buffers, 2000 + 12_000)
    if is_mapped:  # where MPI takes GPU memory parameters are sent from there
        assert memory_of(layout, 0, "cuda", replace(copies, are_on_gpu=True)).on_gpu == server.on_gpu + 2000
    # Page-locked windows need no copies of a worker's vectors.
    assert memory_of(layout, 1, "cuda", replace(copies, mirrored_vectors=0)).beside == 0
