"""A server's threads: they share the blocks of an update, and change no bit of it."""

import threading

import pytest
import torch

from hpcasync.choices import GradientFormat
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.server import shard_state
from hpcasync.ps.server.block_threads import BlockThreads
from hpcasync.ps.server.group_sum import GroupSum
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.transport.gradient_formats import make_wire
from hpcasync.train.loop.optimizers import optimizer_factory

SIZE = 1000
PATIENCE_SECONDS = 60.0


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_blocks", [0, 1, 2, 50])
def test_every_block_is_done_once(num_threads: int, num_blocks: int) -> None:
    done: list[int] = []
    callers: list[str] = []
    threads = BlockThreads(num_threads)
    for _ in range(3):
        done.clear()
        threads.run(num_blocks, done.append, lambda: callers.append(threading.current_thread().name))
        assert sorted(done) == list(range(num_blocks))
    assert set(callers) <= {threading.current_thread().name}


def test_threads_work_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=PATIENCE_SECONDS)
    names: set[str] = set()

    def meet(_: int) -> None:
        names.add(threading.current_thread().name)
        meeting.wait()

    BlockThreads(3).run(3, meet)
    assert len(names) == 3


def test_an_error_in_any_thread_is_raised() -> None:
    meeting = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def fail_beside_the_caller(_: int) -> None:
        meeting.wait()
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        BlockThreads(2).run(2, fail_beside_the_caller)


def updates(num_threads: int, gradients: GradientFormat, num_folded: int) -> list[torch.Tensor]:
    """What three clipped updates of a server leave: parameters, average, what is published, the optimizer's state."""
    generator = torch.Generator().manual_seed(1)
    threads, wire = BlockThreads(num_threads), make_wire(gradients, 0.1)
    dtype = torch.bfloat16 if gradients == "bf16" else torch.float32
    config = OptimizerConfig(name="adam")
    start = torch.randn(SIZE, generator=generator)
    state = ShardState(start, optimizer_factory(config), ema_decay=0.9, threads=threads)
    group = GroupSum(SIZE, wire, threads=threads)
    published, norms = torch.empty(SIZE, dtype=dtype), []
    for version in range(1, 4):
        for number in range(3):
            group.add_slot(torch.randn(SIZE, generator=generator).to(dtype).view(torch.uint8))
            if number < num_folded:
                group.fold()
        norms.append(group.squared_norm() if version % 2 else 1.0)
        scale = 1.0 / norms[-1]
        state.apply(group.block, scale=scale, learning_rate=0.01, version=version, publish=published)
        group.clear()
    return [*state.state_tensors().values(), published, torch.tensor(norms, dtype=torch.float64)]


@pytest.mark.parametrize("gradients", ["fp32", "bf16"])
@pytest.mark.parametrize("num_folded", [0, 2])
def test_results_do_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, gradients: GradientFormat, num_folded: int
) -> None:
    monkeypatch.setattr(shard_state, "BLOCK_ELEMENTS", 37)
    expected = updates(1, gradients, num_folded)
    for num_threads in (2, 5):
        for actual, wanted in zip(updates(num_threads, gradients, num_folded), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("fused", [False, True])
def test_results_do_not_depend_on_how_early_gradients_are_summed(fused: bool) -> None:
    def parameters(num_folded: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        state = ShardState(torch.ones(SIZE), optimizer_factory(OptimizerConfig(name="adam")), fused=fused)
        group = GroupSum(SIZE, make_wire("fp32", 1.0), fused=fused)
        for number in range(4):
            group.add_slot(torch.randn(SIZE, generator=generator).view(torch.uint8))
            if number < num_folded:
                group.fold()
        state.apply(group.block, scale=0.3, learning_rate=0.01, version=1)
        return state.parameters

    assert all(torch.equal(parameters(num_folded), parameters(0)) for num_folded in range(1, 5))
