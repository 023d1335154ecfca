"""Copies between a device and the host. On a GPU where there is one; the CPU runs the same code without streams."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hpcasync.comm.shards import Shard
from hpcasync.ps.worker.device_copy import DeviceCopy

NUM_ELEMENTS = 100_000


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    return torch.device(request.param)


def test_parts_reach_the_host(device: torch.device) -> None:
    copies = DeviceCopy(device)
    vector = torch.arange(NUM_ELEMENTS, dtype=torch.float32, device=device)
    waits = [copies.to_host(vector, Shard(start, start + 10_000)) for start in range(0, NUM_ELEMENTS, 10_000)]
    with ThreadPoolExecutor(1) as executor:
        for wait in waits:
            executor.submit(wait).result()
    host = copies.host(vector)
    assert host.device.type == "cpu" and torch.equal(host, torch.arange(NUM_ELEMENTS, dtype=torch.float32))


def test_parts_are_rounded_before_they_travel(device: torch.device) -> None:
    copies = DeviceCopy(device)
    vector = torch.randn(NUM_ELEMENTS, device=device)
    whole, part = Shard(0, NUM_ELEMENTS), Shard(100, 2000)
    copies.to_host(vector, part, torch.bfloat16)()
    copies.to_host(vector, whole)()
    rounded, exact = copies.host(vector, torch.bfloat16), copies.host(vector)
    assert (rounded.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(exact, vector.cpu())
    assert torch.equal(rounded[100:2000], vector.cpu()[100:2000].to(torch.bfloat16))


def test_a_copy_has_what_was_computed_before_it_and_nothing_after(device: torch.device) -> None:
    copies = DeviceCopy(device)
    vector = torch.zeros(NUM_ELEMENTS, device=device)
    matrix = torch.ones(512, 512, device=device)
    for number in range(1, 20):
        for _ in range(10):
            matrix = torch.mm(matrix, matrix).clamp_(max=1.0)  # keeps the device busy
        vector.add_(matrix[0, 0])
        copies.to_host(vector, Shard(0, NUM_ELEMENTS))()
        host = copies.host(vector)
        assert host.min() == host.max() == number


def test_parameters_reach_the_device(device: torch.device) -> None:
    copies = DeviceCopy(device)
    first, second = torch.empty(NUM_ELEMENTS, device=device), torch.empty(NUM_ELEMENTS, device=device)
    assert copies.host(first) is copies.host(first) is not copies.host(second)
    for number, vector in enumerate((first, second)):
        copies.host(vector).fill_(number)
        copies.wait_for_computation()
        copies.to_device(vector, Shard(0, NUM_ELEMENTS))
    assert first.min() == first.max() == 0 and second.min() == second.max() == 1
    copies.host(first).fill_(2)
    copies.to_device(first, Shard(100, 2000))
    assert (first == 2).nonzero().flatten().tolist() == list(range(100, 2000))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_host_vectors_of_cuda_are_page_locked() -> None:
    device = torch.device("cuda")
    assert DeviceCopy(device).host(torch.zeros(10, device=device)).is_pinned()
