"""What windows are made of: mapped memory where all ranks share a kind of device, if it is wanted."""

import pytest

from hpcasync.choices import WindowKind
from hpcasync.errors import UserError
from hpcasync.ps.transport.window_kind import is_mapped

GPUS, MIXED, CPUS = ["cuda"] * 3, ["cuda", "cpu", "cuda"], ["cpu"] * 3


@pytest.mark.parametrize(
    ("wanted", "device_types", "expected"),
    [
        ("auto", GPUS, True),
        ("auto", MIXED, False),
        ("auto", CPUS, False),
        ("mapped", CPUS, True),
        ("mapped", GPUS, True),
        ("mpi", GPUS, False),
    ],
)
def test_what_is_chosen(wanted: WindowKind, device_types: list[str], expected: bool) -> None:
    assert is_mapped(wanted, device_types) == expected


def test_ranks_on_different_devices_map_nothing() -> None:
    with pytest.raises(UserError, match="rank 0 has its vectors on cuda and rank 1 on cpu: set device and"):
        is_mapped("mapped", MIXED)
