"""Memory that ranks map, on the CPU: what one stores the other reads, and names are gone whatever happens."""

import os
from pathlib import Path

import pytest
import torch

from hpcasync.comm.mapped_window import _HostMemory
from hpcasync.errors import UserError

CPU = torch.device("cpu")


def left() -> set[Path]:
    return set(Path("/dev/shm").glob(f"hpcasync-window-{os.getpid()}-*"))


def test_what_is_stored_is_read_by_who_has_mapped_it() -> None:
    before = left()
    own, other = _HostMemory(4096, CPU), _HostMemory(0, CPU)
    mapped = other.map(own.handle())
    own.is_mapped_by_all()
    assert left() == before, "the memory has no name any more"
    own.memory.view(torch.float32).fill_(3)
    assert mapped.data_ptr() != own.memory.data_ptr()
    assert mapped.view(torch.float32).min() == mapped.view(torch.float32).max() == 3
    own.free()
    assert mapped.sum() > 0, "it goes with the last who maps it"
    assert own.map(None).numel() == 0


def test_memory_that_cannot_be_had_is_said_and_leaves_nothing() -> None:
    before = left()
    with pytest.raises(UserError, match=r"1,152,921,504,606,846,976 bytes cannot be had in \S+: "):
        _HostMemory(2**60, CPU)
    assert left() == before


def test_memory_that_is_gone_cannot_be_mapped() -> None:
    own = _HostMemory(4096, CPU)
    handle = own.handle()
    own.is_mapped_by_all()
    with pytest.raises(UserError, match=r"of another rank cannot be mapped: .*exchange\.window=mpi"):
        _HostMemory(0, CPU).map(handle)
    assert not Path(handle[0]).exists()
