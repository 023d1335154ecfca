"""Formats of gradients, and the sum of a group that lies in its slots."""

from typing import Any, get_args

import pytest
import torch

from hpcasync.choices import WHOLE_GRADIENT_FORMATS, GradientFormat
from hpcasync.comm.shards import Shard
from hpcasync.ps.server import shard_state
from hpcasync.ps.server.compensation import DelayCompensation
from hpcasync.ps.server.group_sum import GroupSum
from hpcasync.ps.transport import gradient_formats as wire
from hpcasync.ps.transport.gradient_formats import SlotAddress, Wire, make_wire

SIZE = 1000
SHARD = Shard(16, 16 + SIZE)


class Memory:
    """One server's memory, on this node or not."""

    def __init__(self, num_bytes: int, *, is_near: bool) -> None:
        self._memory = torch.zeros(num_bytes, dtype=torch.uint8)
        self._is_near = is_near

    def is_local(self, rank: int) -> bool:
        return self._is_near

    def memory(self, rank: int) -> torch.Tensor:
        return self._memory

    def write(self, rank: int, offset: int, values: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        assert self._is_near or dtype in (None, values.dtype)
        raw = values.to(dtype or values.dtype).contiguous().view(torch.uint8)
        self._memory[offset : offset + raw.numel()] = raw


def gradients(number: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHARD.stop + 16, generator=generator) for _ in range(number)]


def send(sender: Wire, gradient: torch.Tensor, *, is_near: bool = True) -> torch.Tensor:
    window: Any = Memory(64 + sender.slot_bytes(SIZE), is_near=is_near)
    sender.write(SlotAddress(window, 3, 64), gradient, SHARD)
    slot: torch.Tensor = window.memory(3)[64:]
    return slot


@pytest.mark.parametrize("is_near", [True, False])
@pytest.mark.parametrize("gradient_format", ["fp32", "bf16"])
def test_dense_formats_round_and_nothing_else(gradient_format: GradientFormat, is_near: bool) -> None:
    one, two = gradients(2)
    sender = make_wire(gradient_format, 0.01)
    total = torch.full((SIZE,), 7.0)
    sender.copy(total, send(sender, one, is_near=is_near))
    sender.add(total, send(sender, two, is_near=is_near))
    dtype = torch.bfloat16 if gradient_format == "bf16" else torch.float32
    expected = sum(gradient[SHARD.start : SHARD.stop].to(dtype).float() for gradient in (one, two))
    assert torch.equal(total, torch.as_tensor(expected))


@pytest.mark.parametrize("gradient_format", ["fp32", "bf16"])
def test_parts_in_any_order_make_the_whole(gradient_format: GradientFormat) -> None:
    (gradient,) = gradients(1)
    sender = make_wire(gradient_format, 0.01)
    window: Any = Memory(sender.slot_bytes(SIZE), is_near=True)
    for part in (Shard(500, 900), Shard(16, 500), Shard(900, SHARD.stop)):
        sender.write(SlotAddress(window, 0, 0), gradient, SHARD, part)
    assert torch.equal(window.memory(0), send(sender, gradient)[: sender.slot_bytes(SIZE)])


@pytest.mark.parametrize("gradient_format", get_args(GradientFormat))
def test_the_simulator_knows_which_formats_have_blocks(gradient_format: GradientFormat) -> None:
    assert make_wire(gradient_format, 0.01).has_blocks == (gradient_format not in WHOLE_GRADIENT_FORMATS)


def test_topk_sends_the_largest_and_keeps_the_rest() -> None:
    sender = make_wire("topk", 0.1)
    sent, given = torch.zeros(SIZE), torch.zeros(SIZE)
    for gradient in gradients(12):
        slot = send(sender, gradient)
        before, part = sent.clone(), gradient[SHARD.start : SHARD.stop]
        due = given + part - sent
        given += part
        sender.add(sent, slot)
        chosen = (sent - before) != 0
        assert chosen.sum() == 100
        assert due[chosen].abs().min() >= due[~chosen].abs().max()
        torch.testing.assert_close((sent - before)[chosen], due[chosen])
    for _ in range(40):  # what was held back comes in the end
        sender.add(sent, send(sender, torch.zeros(SHARD.stop + 16)))
    torch.testing.assert_close(sent, given)


def test_topk_never_sends_more_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_SAMPLE_ELEMENTS", 10)  # a sample that misleads
    gradient = torch.ones(SHARD.stop + 16)
    gradient[SHARD.start :: 100] = 0.5
    sender = make_wire("topk", 0.1)
    total = torch.zeros(SIZE)
    sender.copy(total, send(sender, gradient))
    assert 100 <= int((total != 0).sum()) <= 125


@pytest.mark.parametrize("gradient_format", ["fp32", "bf16"])
@pytest.mark.parametrize("num_folded", [0, 1, 3])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_group_is_summed_block_by_block(
    monkeypatch: pytest.MonkeyPatch, num_folded: int, with_norm: bool, gradient_format: GradientFormat, fused: bool
) -> None:
    monkeypatch.setattr(shard_state, "BLOCK_ELEMENTS", 300)
    sender = make_wire(gradient_format, 0.01)
    dtype = torch.bfloat16 if gradient_format == "bf16" else torch.float32
    group = GroupSum(SIZE, sender, fused=fused)
    for round_number in range(2):
        chosen = gradients(4, seed=round_number)
        for number, gradient in enumerate(chosen):
            if number == num_folded:
                group.fold()
            group.add_slot(send(sender, gradient))
        expected = torch.stack([gradient[SHARD.start : SHARD.stop].to(dtype).float() for gradient in chosen]).sum(0)
        if with_norm:
            assert group.squared_norm() == pytest.approx(float(expected.double().square().sum()), rel=1e-5)
        blocks = [sum(group.block(start, min(start + 300, SIZE)), torch.zeros(())) for start in range(0, SIZE, 300)]
        torch.testing.assert_close(torch.cat(blocks), expected)
        group.clear()


def test_compensation_is_the_first_order_correction() -> None:
    then, now = torch.randn(SIZE), torch.randn(SIZE)
    compensation = DelayCompensation(0.5, 2, then, version=4)
    compensation.remember(5, now * 3)
    mean = torch.randn(SIZE)
    gradient = mean * 7
    compensation.correct(gradient, 7, 4, now)
    torch.testing.assert_close(gradient / 7, mean + 0.5 * mean * mean * (now - then))
    assert DelayCompensation.num_copies(2) == 3
