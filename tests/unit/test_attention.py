"""Attention, dropout, packing and linear layers on the CPU against plain torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hpcasync.nmt.attention import attend, cross_attention, self_attention
from hpcasync.nmt.dropout import add_dropout, dropout, keep_mask
from hpcasync.nmt.linear import Linear, linear
from hpcasync.nmt.packing import Packing

HEADS, HEAD_DIM = 2, 4
DIM = HEADS * HEAD_DIM


def mask_of(lengths: list[int], length: int) -> Tensor:
    return torch.arange(length) < torch.tensor(lengths)[:, None]


def assert_same_with_gradients(
    output: Tensor, expected: Tensor, inputs: tuple[Tensor, ...], tolerance: float = 1e-10
) -> None:
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)
    upstream = torch.randn_like(output)
    gradients = torch.autograd.grad(output, inputs, upstream)
    for gradient, exact in zip(gradients, torch.autograd.grad(expected, inputs, upstream), strict=True):
        torch.testing.assert_close(gradient, exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("length", [1, 5, 17])
@pytest.mark.parametrize("mode", ["open", "masked", "causal"])
def test_self_attention_equals_torch(length: int, mode: str) -> None:
    projected = torch.randn(3, length, 3 * DIM, dtype=torch.float64, requires_grad=True)
    mask = mask_of([length, 1, max(1, length - 2)], length) if mode == "masked" else None
    output = self_attention(projected, HEADS, mask, causal=mode == "causal")
    query, key, value = projected.view(3, length, 3, HEADS, HEAD_DIM).unbind(2)
    expected = attend(query, key, value, mask, causal=mode == "causal")
    assert_same_with_gradients(output, expected, (projected,))


@pytest.mark.parametrize("is_masked", [False, True])
def test_cross_attention_equals_torch(is_masked: bool) -> None:
    query = torch.randn(3, 5, DIM, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(3, 7, 2, HEADS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    mask = mask_of([7, 2, 6], 7) if is_masked else None
    key, value = memory.unbind(2)
    expected = attend(query.view(3, 5, HEADS, HEAD_DIM), key, value, mask)
    assert_same_with_gradients(cross_attention(query, memory, mask), expected, (query, memory))


def test_gradients_with_attention_dropout() -> None:
    projected = torch.randn(2, 3, 3 * DIM, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 4, 2, HEADS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
    mask = mask_of([3, 2], 3)

    def seeded(projected: Tensor, memory: Tensor) -> Tensor:
        torch.manual_seed(4)
        stream = self_attention(projected, HEADS, mask, causal=False, dropout=0.4)
        return cross_attention(stream, memory, None, dropout=0.4)

    assert torch.autograd.gradcheck(seeded, (projected, memory))


def test_attention_dropout_keeps_the_mean() -> None:
    projected = torch.randn(1, 3, 3 * DIM, requires_grad=True)
    torch.manual_seed(2)
    many = self_attention(projected.expand(20_000, 3, 3 * DIM), HEADS, None, causal=False, dropout=0.25)
    expected = self_attention(projected, HEADS, None, causal=False)
    torch.testing.assert_close(many.mean(0, keepdim=True), expected, atol=0.02, rtol=0.0)


@pytest.mark.parametrize("probability", [0.001, 0.1, 0.5, 0.9])
def test_dropout_drops_with_exactly_its_probability(probability: float) -> None:
    torch.manual_seed(7)
    draws = [keep_mask(torch.Size([50, 50]), probability) for _ in range(400)]
    dropped = 1 - torch.stack([kept for kept, _ in draws]).double().mean().item()
    # A million elements; thresholds of neighbouring 1/256ths mix, which adds at most 0.002 / sqrt(400) of deviation.
    deviation = (probability * (1 - probability) / 1e6) ** 0.5 + 1e-4
    assert abs(dropped - probability) < 4 * deviation
    # For each draw the factor makes up for what that draw drops on average.
    for kept, scale in draws:
        share = 1 / scale
        assert abs(kept.double().mean().item() - share) < 5 * (share * (1 - share) / 2500) ** 0.5 + 1e-9


def test_dropout_masks_are_independent_of_each_other_and_of_position() -> None:
    torch.manual_seed(7)
    first, second = (keep_mask(torch.Size([1 << 17]), 0.5)[0].double() for _ in range(2))
    for other in (second, first.roll(1), first.roll(8)):
        assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1].item()) < 0.015
    by_byte = first.view(-1, 8).mean(0)
    torch.testing.assert_close(by_byte, torch.full_like(by_byte, first.mean().item()), atol=0.02, rtol=0.0)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.floats(0.0, 0.99))
def test_dropout_and_its_gradient(shape: list[int], probability: float) -> None:
    x = torch.randn(shape).abs().add(1).requires_grad_()
    residual = torch.randn(shape, requires_grad=True)
    output = dropout(x, probability, True)
    (gradient,) = torch.autograd.grad(output.sum(), x)
    factors = set(gradient[gradient != 0].tolist())
    assert len(factors) <= 1
    torch.testing.assert_close(output, x * gradient)
    added = add_dropout(residual, x, probability, True)
    gradients = torch.autograd.grad(added.sum(), (residual, x))
    torch.testing.assert_close(gradients[0], torch.ones(shape))
    torch.testing.assert_close(added, residual + x * gradients[1])


def test_dropout_is_off_outside_training_and_at_zero() -> None:
    x = torch.randn(5, 5)
    assert dropout(x, 0.5, False) is x and dropout(x, 0.0, True) is x
    assert torch.equal(add_dropout(x, x, 0.5, False), 2 * x) and torch.equal(add_dropout(x, x, 0.0, True), 2 * x)


def test_add_dropout_mixes_precisions() -> None:
    residual, x = torch.randn(6, 6, requires_grad=True), torch.randn(6, 6, dtype=torch.bfloat16, requires_grad=True)
    output = add_dropout(residual, x, 0.5, True)
    output.sum().backward()  # type: ignore[no-untyped-call]
    assert output.dtype == torch.float32 and x.grad is not None and x.grad.dtype == torch.bfloat16


def test_packing_leaves_padding_out_and_puts_zeros_back() -> None:
    tokens = torch.tensor([[5, 6, 0], [7, 0, 0]])
    packing = Packing.of(tokens, 0)
    assert packing.rows is not None and packing.rows.tolist() == [0, 1, 3]
    values = torch.randn(2, 3, 4, requires_grad=True)
    packed = packing.pack(values)
    assert torch.equal(packed, values[tokens != 0])
    padded = packing.pad(packed)
    assert torch.equal(padded, values * (tokens != 0)[..., None])
    (padded * padded.detach()).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None and torch.equal(values.grad, padded)


def test_packing_keeps_all_rows_where_little_is_padded() -> None:
    full = torch.ones(4, 25, dtype=torch.int64)
    assert Packing.of(full, 0).mask is None
    full[0, -1] = 0
    packing = Packing.of(full, 0)
    assert packing.rows is None and packing.mask is not None and int(packing.mask.sum()) == 99
    assert packing.pack(full).shape == (100,)


@pytest.mark.parametrize("relu", [False, True])
def test_linear_equals_torch(relu: bool) -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(9, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    bias = torch.randn(5, requires_grad=True)
    expected = functional.linear(x, weight, bias)
    expected = functional.relu(expected) if relu else expected
    assert_same_with_gradients(linear(x, weight, bias, relu=relu), expected, (x, weight, bias), 1e-5)


def test_fused_projections_are_initialised_each_by_itself() -> None:
    torch.manual_seed(1)
    fused, single = Linear(64, 64, num_fused=3), Linear(64, 64)
    # Xavier: uniform in +-sqrt(6 / (64 + 64)), whose standard deviation is 1/8.
    for block in (*fused.weight.chunk(3), single.weight):
        assert block.std().item() == pytest.approx(0.125, rel=0.03)
    assert fused.bias.abs().sum() == 0
