"""A worker's step: gradients in reduced precision are not thrown away, times are those of the gradient."""

import time
from typing import Any

import pytest
import torch
from tiny_run import TinyRun

from hpcasync.config.schema import Config, Precision, parse_config
from hpcasync.data.batches import Batch, BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.nmt.build import build_model
from hpcasync.nmt.model import TranslationModel
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.train.loop.precision import precision_on
from hpcasync.train.loop.step import GradientStep

ARCHITECTURES = ["transformer", "rnn"]


def parts(tiny_run: TinyRun, **values: Any) -> tuple[Config, TranslationModel, BatchPlan]:
    corpus = PreparedCorpus.open(tiny_run.corpus)
    sizes = {"dim": 16, "ffn_dim": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 2}
    model = {**sizes, "architecture": values.pop("architecture", "transformer")}
    data = {"path": str(tiny_run.corpus), "batch_tokens": 200}
    config = parse_config({"data": data, "stop": {"updates": 1}, "model": model, **values}, "test")
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    torch.manual_seed(1)
    built = build_model(config.model, len(source), len(target), source.pad_id, target.pad_id)
    return config, built, BatchPlan(corpus.train, source, target, batch_tokens=200, seed=1)


def step_of(tiny_run: TinyRun, **values: Any) -> tuple[GradientStep, FlatParameters]:
    config, model, plan = parts(tiny_run, **values)
    flat = FlatParameters(model)
    return GradientStep(config, model, flat, plan), flat


@pytest.mark.parametrize(
    ("device", "has_bf16", "wanted", "expected"),
    [
        ("cpu", True, "auto", "fp32"),
        ("cuda", True, "auto", "bf16"),
        ("cuda", False, "auto", "fp32"),
        ("cuda", True, "fp32", "fp32"),
        ("cpu", False, "bf16", "bf16"),
    ],
)
def test_what_is_not_said_depends_on_the_device(
    device: str, has_bf16: bool, wanted: Precision, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has_bf16)
    assert precision_on(torch.device(device), wanted) == expected


def test_the_first_gradient_in_fp16_is_used(tiny_run: TinyRun) -> None:
    """The first scale suits a sum over tokens."""
    exact, exact_flat = step_of(tiny_run)
    half, half_flat = step_of(tiny_run, precision="fp16")
    expected, actual = (step.run(iter([3]).__next__) for step in (exact, half))
    assert actual.num_tokens == expected.num_tokens > 0
    assert half._scaler.get_scale() == 2.0**16 / 2**8, "for batches of 200 tokens"
    error = (half_flat.gradient - exact_flat.gradient).norm() / exact_flat.gradient.norm()
    assert error < 0.02


def test_a_batch_that_overflows_in_fp16_is_computed_again(tiny_run: TinyRun) -> None:
    step, flat = step_of(tiny_run, precision="fp16", mode="async-local", accumulate={"local": 2})
    usual, usual_flat = step_of(tiny_run, precision="fp16", mode="async-local", accumulate={"local": 2})
    expected = usual.run(iter([3, 4]).__next__)
    step._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    drawn = iter([3, 4])
    done = step.run(drawn.__next__)
    assert next(drawn, None) is None and done.tickets == (3, 4), "each is drawn once"
    assert step._scaler.get_scale() < 2.0**30, "found by halving"
    assert (done.num_tokens, done.loss_sum) == (expected.num_tokens, expected.loss_sum)
    torch.testing.assert_close(flat.gradient, usual_flat.gradient, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gradient_that_no_scale_makes_finite_has_no_weight(tiny_run: TinyRun, precision: str) -> None:
    step, flat = step_of(tiny_run, precision=precision)
    flat.parameters[:10].fill_(float("nan"))
    assert step.run(iter([3]).__next__).num_tokens == 0


def test_the_time_of_computing_ends_when_the_gradient_is_there(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU only looking at the gradient waits for it; here, looking takes as long."""
    step, _ = step_of(tiny_run)
    finish = step._finish

    def wait_for_gradient() -> bool:
        time.sleep(0.3)
        return finish()

    monkeypatch.setattr(step, "_finish", wait_for_gradient)
    assert step.run(iter([3]).__next__).compute_seconds >= 0.3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_waits_for_no_value(tiny_run: TinyRun, architecture: str) -> None:
    """Meta tensors have none: what would make a GPU's host wait fails on them."""
    _, model, plan = parts(tiny_run, architecture=architecture)
    batch = plan.batch(3).to("meta")
    loss, _ = model.to("meta").summed_loss(
        batch.source, batch.target_input, batch.target_output, 0.1, batch.target_rows
    )
    torch.autograd.backward(loss)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_that_travel_with_the_batch_are_those_that_are_found(tiny_run: TinyRun, architecture: str) -> None:
    _, model, plan = parts(tiny_run, architecture=architecture)
    model.eval()

    def losses(batch: Batch, *rows: torch.Tensor) -> list[float]:
        pair = model.summed_loss(batch.source, batch.target_input, batch.target_output, 0.1, *rows)
        return [value.item() for value in pair]

    for ticket in range(4):
        batch = plan.batch(ticket)
        pad_id = int(model.target_pad_id)  # type: ignore[arg-type]
        assert len(batch.target_rows) == batch.num_target_tokens
        assert torch.equal(batch.target_rows, batch.target_output.view(-1).ne(pad_id).nonzero().view(-1))
        assert losses(batch, batch.target_rows) == losses(batch)


def test_the_next_batch_is_made_before_the_gradient_is_waited_for(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, flat = step_of(tiny_run)
    ahead, ahead_flat = step_of(tiny_run, data={"path": str(tiny_run.corpus), "batch_tokens": 200, "prefetch": True})
    done: list[object] = []
    batch, finish = ahead._plan.batch, ahead._finish

    def make(ticket: int) -> Batch:
        done.append(ticket)
        return batch(ticket)

    def wait_for_gradient() -> bool:
        done.append("gradient")
        return finish()

    monkeypatch.setattr(ahead._plan, "batch", make)
    monkeypatch.setattr(ahead, "_finish", wait_for_gradient)
    for ticket, following in ((3, 5), (5, 4), (7, None)):  # the second promise is not kept
        expected = step.run(iter([ticket]).__next__)
        made = ahead.run(iter([ticket]).__next__, next_ticket=iter([following]).__next__)
        assert made.tickets == expected.tickets and torch.equal(flat.gradient, ahead_flat.gradient)
    assert done == [3, 5, "gradient", 4, "gradient", 7, "gradient"]
