"""Which vector is a worker's gradient, push after push."""

import pytest
import torch

from hpcasync.ps.protocol.working import Count
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.ps.worker.gradient_ring import GradientRing


@pytest.fixture
def flat() -> FlatParameters:
    return FlatParameters(torch.nn.Linear(5, 3))


def shared(flat: FlatParameters, number: int) -> list[torch.Tensor]:
    return [torch.full_like(flat.gradient, index) for index in range(number)]


def test_push_n_is_computed_in_vector_n_modulo_their_number(flat: FlatParameters) -> None:
    vectors = shared(flat, 3)
    turns = GradientRing(flat, vectors, 1, sequence=4)
    assert flat.gradient is vectors[1]
    must_be_read = []
    for sequence in range(5, 12):
        must_be_read.append(turns.begin())
        turns.end()
        assert flat.gradient is vectors[sequence % 3]
        assert all(p.grad is not None and p.grad[0].flatten()[0] == sequence % 3 for p, _ in flat.bounds)
    assert must_be_read == [(Count.CONSUMED, sequence - 3) for sequence in range(5, 12)], "what the vector held before"


def test_one_private_vector_stays(flat: FlatParameters) -> None:
    own = flat.gradient
    turns = GradientRing(flat, [], 1, sequence=1)
    assert turns.begin() is None
    turns.end()
    turns.leave()
    assert flat.gradient is own


def test_two_private_vectors_alternate(flat: FlatParameters) -> None:
    turns, seen = GradientRing(flat, [], 2, sequence=1), []
    for _ in range(4):
        seen.append(flat.gradient.data_ptr())
        assert turns.begin() is None, "a gradient that is copied can be overwritten at once"
        turns.end()
    assert seen[0] == seen[2] != seen[1] == seen[3]


def test_what_servers_may_be_reading_is_left_alone(flat: FlatParameters) -> None:
    vectors = shared(flat, 2)
    turns = GradientRing(flat, vectors, 1, sequence=1)
    turns.begin()
    turns.leave()
    for _ in range(3):
        assert all(flat.gradient is not vector for vector in vectors)
        flat.gradient.fill_(9)
        assert turns.begin() is None
        turns.end()
    assert [float(vector.mean()) for vector in vectors] == [0, 1]
