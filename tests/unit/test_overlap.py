"""Gradients that leave bucket by bucket: every element once, none before it is complete, whatever happens."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hpcasync.comm.shards import Shard
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.worker import bucketed_push as overlap
from hpcasync.ps.worker.bucketed_push import GradientStream
from hpcasync.ps.worker.flat_parameters import FlatParameters


class Receiver:
    """Stands where the client does: keeps what is written, and when."""

    def __init__(self, num_elements: int, *, has_ended: bool = False) -> None:
        self.received = torch.full((num_elements,), torch.nan)
        self.parts: list[Shard] = []
        self.records: list[PushRecord] = []
        self._has_ended = has_ended
        self.threads: set[int] = set()
        self.num_abandoned = 0
        self.num_turns = 0

    def begin_push(self) -> bool:
        return not self._has_ended

    def stage(self, gradient: torch.Tensor, part: Shard) -> Callable[[], None]:
        values = gradient[part.start : part.stop].clone()  # as a copy to the host would find them

        def wait() -> None:
            assert torch.equal(gradient[part.start : part.stop], values), "staged before it was complete"

        return wait

    def abandon(self, gradient: torch.Tensor) -> None:
        self.num_abandoned += 1

    def write(self, gradient: torch.Tensor, part: Shard) -> None:
        assert torch.isnan(self.received[part.start : part.stop]).all(), "written twice"
        self.received[part.start : part.stop] = gradient[part.start : part.stop]
        self.parts.append(part)
        self.threads.add(threading.get_ident())

    def end_push(self, record: PushRecord) -> None:
        self.records.append(record)

    def turn(self) -> None:
        self.num_turns += 1


class Tied(torch.nn.Module):
    """Layers, one of them used at the beginning and at the end, and one that is not used at all."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = torch.nn.Linear(16, 16)
        self.middle = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(6))
        self.unused = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(x)
        for layer in self.middle:
            x = torch.tanh(layer(x))
        return torch.tanh(self.shared(x))


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> FlatParameters:
    monkeypatch.setattr(overlap, "PUSHED_ELEMENTS", 400)
    torch.manual_seed(0)
    module = Tied()
    flat = FlatParameters(module)
    flat.module = module  # type: ignore[attr-defined]
    return flat


def backward(flat: FlatParameters) -> None:
    flat.module(torch.ones(3, 16)).sum().backward()  # type: ignore[attr-defined]


def record(num_tokens: int = 3) -> PushRecord:
    return PushRecord(0, num_tokens, 1.0, 1, 0.1, (0,))


def test_every_element_arrives_once_and_complete(flat: FlatParameters) -> None:
    with ThreadPoolExecutor(1) as executor:
        receiver = Receiver(flat.num_elements)
        stream = GradientStream(receiver, flat, executor)  # type: ignore[arg-type]
        backward(flat)  # an earlier micro-batch: nothing leaves
        assert not receiver.parts
        stream.begin()
        backward(flat)
        executor.submit(lambda: None).result()  # what was handed over before is done
        num_during = len(receiver.parts)
        assert stream.end(record()).result()
    assert num_during > 1, "buckets left during backward"
    assert len(receiver.parts) > num_during, "what was never reached leaves at the end"
    assert torch.equal(receiver.received, flat.gradient)
    assert threading.get_ident() not in receiver.threads
    assert len(receiver.records) == receiver.num_turns == 1


def test_a_gradient_that_was_not_expected_leaves_whole(flat: FlatParameters) -> None:
    with ThreadPoolExecutor(1) as executor:
        receiver = Receiver(flat.num_elements)
        stream = GradientStream(receiver, flat, executor)  # type: ignore[arg-type]
        backward(flat)
        assert stream.end(record()).result()
    assert torch.equal(receiver.received, flat.gradient)


def test_a_rejected_gradient_is_told_all_the_same(flat: FlatParameters) -> None:
    with ThreadPoolExecutor(1) as executor:
        receiver = Receiver(flat.num_elements)
        stream = GradientStream(receiver, flat, executor)  # type: ignore[arg-type]
        stream.begin()
        backward(flat)
        assert stream.end(record(num_tokens=0)).result()
    assert [told.num_tokens for told in receiver.records] == [0] and receiver.num_abandoned == 1


def test_nothing_is_written_once_training_has_ended(flat: FlatParameters) -> None:
    with ThreadPoolExecutor(1) as executor:
        receiver = Receiver(flat.num_elements, has_ended=True)
        stream = GradientStream(receiver, flat, executor)  # type: ignore[arg-type]
        stream.begin()
        backward(flat)
        assert not stream.end(record()).result()
    assert not receiver.parts and not receiver.records


def test_vectors_take_turns(flat: FlatParameters) -> None:
    first_gradient, first_parameters = flat.gradient, flat.parameters
    flat.use_gradient(torch.zeros_like(first_gradient))
    flat.use_parameters(first_parameters * 0)
    backward(flat)
    assert flat.gradient.abs().sum() > 0 and first_gradient.abs().sum() == 0
    assert all(not parameter.any() for parameter, _ in flat.bounds)
