"""What windows are made of: mapped memory where all ranks share one host and a kind of device, if it is wanted."""

import pytest

from hpcasync.choices import WindowKind
from hpcasync.errors import UserError
from hpcasync.ps.transport.window_kind import is_mapped

GPUS, MIXED, CPUS = ["cuda"] * 3, ["cuda", "cpu", "cuda"], ["cpu"] * 3


@pytest.mark.parametrize(
    ("wanted", "device_types", "is_one_host", "expected"),
    [
        ("auto", GPUS, True, True),
        ("auto", GPUS, False, False),
        ("auto", MIXED, True, False),
        ("auto", CPUS, True, False),
        ("mapped", CPUS, True, True),
        ("mapped", GPUS, True, True),
        ("mpi", GPUS, True, False),
    ],
)
def test_what_is_chosen(wanted: WindowKind, device_types: list[str], is_one_host: bool, expected: bool) -> None:
    assert is_mapped(wanted, device_types, is_one_host=is_one_host) == expected


@pytest.mark.parametrize(
    ("device_types", "is_one_host", "message"),
    [
        (GPUS, False, "exchange.window=mapped: .*several hosts: use exchange.window=mpi"),
        (MIXED, True, "exchange.window=mapped: rank 0 has its vectors on cuda and rank 1 on cpu: set device and"),
    ],
)
def test_what_cannot_be_mapped_is_refused(device_types: list[str], is_one_host: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        is_mapped("mapped", device_types, is_one_host=is_one_host)
