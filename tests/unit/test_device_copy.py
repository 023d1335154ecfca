"""Copies between a device and the host. On a GPU where there is one; the CPU runs the same code without streams."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpcasync.comm.shards import Shard
from hpcasync.ps.server.block_threads import BlockThreads
from hpcasync.ps.server.block_update import publish
from hpcasync.ps.server.muon import Muon
from hpcasync.ps.server.parameter_groups import ParameterGroup
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.transport.gradient_formats import DenseWire
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


class Crossings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what goes from one device to another: type before and after, and number of elements."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[torch.dtype, torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_back = func is torch.ops.aten.copy_.default and args[1].device.type == "meta" != args[0].device.type
        result = args[0] if is_back else func(*args, **(kwargs or {}))  # there are no values to bring back
        if func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            source = args[-1] if len(args) > 1 else args[0]
            if source.device != result.device:
                self.seen.append((source.dtype, result.dtype, result.numel()))
        return result


def test_between_a_gpu_and_windows_of_mpi_bf16_travels_as_bf16() -> None:
    """Tensors without values are the GPU's."""
    with Crossings() as crossings:
        total, window = torch.empty(100, device="meta"), torch.empty(200, dtype=torch.uint8)
        wire = DenseWire(torch.bfloat16)
        wire.copy(total, window)
        wire.add(total, window)
        publish(window.view(torch.bfloat16), total)
    assert crossings.seen == [(torch.bfloat16, torch.bfloat16, 100)] * 3


def test_a_gpu_is_not_waited_for_by_muon_and_its_blocks_are_one_threads() -> None:
    """Without values; one that the host asks for is an error."""
    parameters, gradient = (torch.empty(72, device="meta") for _ in range(2))
    groups = [
        ParameterGroup(32, partial(Muon, shape=(4, 8), lr=0.1), is_whole=True),
        ParameterGroup(40, partial(torch.optim.SGD, lr=0.1)),
        ParameterGroup(72, partial(Muon, shape=(8, 4), lr=0.1, nesterov=False), is_whole=True),
    ]
    state = ShardState(parameters, groups, ema_decay=0.9, threads=BlockThreads(4))
    assert state.threads.num_threads == 1
    published = torch.empty(72, dtype=torch.bfloat16, device="meta")
    for version in (1, 2):
        state.apply(
            lambda start, stop: [gradient[start:stop]] * 2,
            scale=0.5, learning_rate=0.1, version=version, publish=published,
        )  # fmt: skip
