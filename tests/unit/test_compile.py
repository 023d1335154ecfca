"""Compiled layers compute what the others do, are compiled for few shapes, and only for training."""

from typing import Any

import pytest
import torch
from tiny_run import TinyRun
from torch._dynamo.utils import counters

from hpcasync.config.model import ModelConfig
from hpcasync.config.schema import parse_config
from hpcasync.data.batches import Batch, BatchPlan
from hpcasync.data.collate import Ragged, assemble
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.errors import UserError
from hpcasync.nmt.build import build_model
from hpcasync.nmt.transformer import Transformer
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.train.loop.step import GradientStep


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()
    counters.clear()


def model_and_plan(tiny_run: TinyRun, *, rounded: bool, **sizes: Any) -> tuple[Transformer, BatchPlan]:
    corpus = PreparedCorpus.open(tiny_run.corpus)
    vocabularies = source, target = corpus.source_vocabulary, corpus.target_vocabulary
    defaults = {"dim": 16, "ffn_dim": 32, "heads": 2, "encoder_layers": 2, "decoder_layers": 3, "dropout": 0.0}
    torch.manual_seed(1)
    model = build_model(
        ModelConfig.model_validate({**defaults, **sizes}), len(source), len(target), source.pad_id, target.pad_id
    )
    assert isinstance(model, Transformer)
    return model, BatchPlan(corpus.train, *vocabularies, batch_tokens=200, seed=1, rounded=rounded)


def loss_and_gradient(model: Transformer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    loss, _ = model.summed_loss(batch.source, batch.target_input, batch.target_output, 0.1, batch.target_rows)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def num_compiled() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_loss_is_the_same_and_an_epoch_compiles_each_shape_once(tiny_run: TinyRun, norm: str) -> None:
    eager, plan = model_and_plan(tiny_run, rounded=True, norm=norm)
    compiled, _ = model_and_plan(tiny_run, rounded=True, norm=norm)
    compiled.compile_layers("aot_eager")
    shapes = set()
    for ticket in range(plan.num_batches()):
        batch = plan.batch(ticket)
        shapes.add(batch.source.shape)
        for actual, expected in zip(loss_and_gradient(compiled, batch), loss_and_gradient(eager, batch), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    # Of a kind of layer, whichever and however many there are.
    assert len(shapes) > 1 and num_compiled() == 2 * len(shapes)
    for ticket in range(plan.num_batches(), 2 * plan.num_batches()):
        loss_and_gradient(compiled, plan.batch(ticket))
    assert num_compiled() == 2 * len(shapes), "all shapes have come"


def test_padding_to_a_shape_changes_no_loss(tiny_run: TinyRun) -> None:
    model, plan = model_and_plan(tiny_run, rounded=True)
    corpus = PreparedCorpus.open(tiny_run.corpus)
    files, vocabularies = corpus.train, (corpus.source_vocabulary, corpus.target_vocabulary)
    for ticket in range(4):
        padded = plan.batch(ticket)
        source, target = (Ragged(*file.gather(padded.indices)) for file in (files.source_file, files.target_file))
        alone = assemble(source, target, *vocabularies, padded.indices)
        assert alone.source.numel() < padded.source.numel()
        for actual, expected in zip(loss_and_gradient(model, padded), loss_and_gradient(model, alone), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_scores_are_computed_without_compiling(tiny_run: TinyRun) -> None:
    model, plan = model_and_plan(tiny_run, rounded=False)
    model.compile_layers("aot_eager")
    model.eval()
    batch = plan.batch(0)
    with torch.no_grad():
        model.summed_loss(batch.source, batch.target_input, batch.target_output, 0.0)
    assert num_compiled() == 0


def test_a_worker_computes_a_gradient_of_its_ticket_alone(tiny_run: TinyRun) -> None:
    """By torch's own backend, with dropout: the same ticket drops the same, and about as much as without."""
    values = {"data": {"path": str(tiny_run.corpus), "batch_tokens": 200}, "stop": {"updates": 1}, "compile": True}
    config = parse_config(values, "test")
    model, plan = model_and_plan(tiny_run, rounded=True, encoder_layers=1, decoder_layers=1, dropout=0.1)
    model.compile_layers()
    flat = FlatParameters(model)
    step = GradientStep(config, model, flat, plan)
    gradients, losses = [], []
    for ticket in (3, 3):
        losses.append(step.run(iter([ticket]).__next__).loss_sum)
        gradients.append(flat.gradient.clone())
    assert losses[0] == losses[1] and torch.equal(*gradients)
    eager, _ = model_and_plan(tiny_run, rounded=True, encoder_layers=1, decoder_layers=1, dropout=0.1)
    expected = GradientStep(config, eager, FlatParameters(eager), plan).run(iter([3]).__next__)
    assert losses[0] == pytest.approx(expected.loss_sum, rel=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"architecture": "rnn"}}, "leave it out with model.architecture=rnn"),
        ({"data": {"path": "c", "sampling": 0.1}}, "data.sampling makes sentences of any length"),
    ],
)
def test_what_cannot_be_compiled_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({"data": {"path": "c"}, "stop": {"updates": 1}, "compile": True, **values}, "test")
