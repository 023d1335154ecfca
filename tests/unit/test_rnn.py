"""The recurrent model: cached steps equal teacher forcing, padding changes nothing, and it learns."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from hpcasync.config.model import ModelConfig
from hpcasync.errors import UserError
from hpcasync.nmt import rnn
from hpcasync.nmt.build import build_model
from hpcasync.nmt.rnn import Lstm, RecurrentModel, reversal
from hpcasync.ps.worker.flat_parameters import FlatParameters

PAD, BOS, EOS = 0, 2, 3
NUM_PIECES = 20


def make_model(**values: object) -> RecurrentModel:
    sizes = {"dim": 16, "heads": 2, "encoder_layers": 3, "decoder_layers": 3, "dropout": 0.0, "tie": "all", **values}
    torch.manual_seed(1)
    model = build_model(ModelConfig.model_validate({"architecture": "rnn", **sizes}), NUM_PIECES, NUM_PIECES, PAD, PAD)
    assert isinstance(model, RecurrentModel)
    return model


def pad(sentences: list[list[int]], extra: int = 0) -> Tensor:
    longest = max(map(len, sentences)) + extra
    return torch.tensor([sentence + [PAD] * (longest - len(sentence)) for sentence in sentences])


def random_sentences(generator: torch.Generator, lengths: list[int]) -> list[list[int]]:
    return [torch.randint(4, NUM_PIECES, (length,), generator=generator).tolist() for length in lengths]


SOURCES = random_sentences(torch.Generator().manual_seed(3), [5, 2, 7])
TARGETS = random_sentences(torch.Generator().manual_seed(4), [4, 6, 1])


def tensors(sources: list[list[int]], targets: list[list[int]], extra: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return (
        pad([[*s, EOS] for s in sources], extra),
        pad([[BOS, *t] for t in targets], extra),
        pad([[*t, EOS] for t in targets], extra),
    )


def test_reversal_keeps_padding_last() -> None:
    assert reversal(torch.tensor([3, 1, 4]), 4).tolist() == [[2, 1, 0, 3], [0, 1, 2, 3], [3, 2, 1, 0]]


@pytest.mark.parametrize("tie", ["all", "target", "none"])
@pytest.mark.parametrize("depth", [1, 3])
def test_steps_equal_teacher_forcing(tie: str, depth: int) -> None:
    model = make_model(tie=tie, encoder_layers=depth, decoder_layers=depth).eval()
    source, target_input, target_output = tensors(SOURCES, TARGETS)
    with torch.inference_mode():
        state = model.start(source)
        logits = torch.stack([model.step(column, state) for column in target_input.unbind(1)], 1)
        loss, nll = model.summed_loss(source, target_input, target_output, 0.0)
    expected = functional.cross_entropy(
        logits.flatten(0, 1), target_output.flatten(), ignore_index=PAD, reduction="sum"
    )
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert logits.dtype == torch.float32 and logits.shape == (3, target_input.shape[1], NUM_PIECES)


def test_selected_rows_continue_as_their_origin() -> None:
    model = make_model().eval()
    source, target_input, _ = tensors(SOURCES, TARGETS)
    with torch.inference_mode():
        state, reference = model.start(source), model.start(source)
        rows = torch.tensor([2, 0, 0, 2])  # repeats, omits and reorders
        model.step(target_input[:, 0], state)
        model.step(target_input[:, 0], reference)
        state.select_(rows)
        assert state.num_rows == 4
        tokens = torch.tensor([5, 6, 7, 8])
        first = model.step(tokens, state)
        for row, origin in enumerate(rows.tolist()):
            again = model.start(source)
            model.step(target_input[:, 0], again)
            expected = model.step(torch.full((3,), int(tokens[row])), again)[origin]
            torch.testing.assert_close(first[row], expected, rtol=1e-5, atol=1e-5)
        # A second selection within the beams of the same sentences.
        state.select_(torch.tensor([3, 2, 1, 0]))
        assert state.source_rows.tolist() == [2, 0, 0, 2]


def test_padding_and_company_change_nothing() -> None:
    model = make_model().eval()
    with torch.inference_mode():
        together = model.summed_loss(*tensors(SOURCES, TARGETS, extra=3), 0.1)
        apart = [model.summed_loss(*tensors([s], [t]), 0.1) for s, t in zip(SOURCES, TARGETS, strict=True)]
    for part in range(2):
        torch.testing.assert_close(
            together[part], torch.stack([pair[part] for pair in apart]).sum(), rtol=1e-5, atol=1e-4
        )


def test_every_parameter_gets_a_gradient() -> None:
    model = make_model(tie="none")
    loss, _ = model.summed_loss(*tensors(SOURCES, TARGETS), 0.1)
    loss.backward()  # type: ignore[no-untyped-call]
    without = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []


def test_autocast_gives_nearly_the_same_loss() -> None:
    model = make_model()
    exact, _ = model.summed_loss(*tensors(SOURCES, TARGETS), 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = model.summed_loss(*tensors(SOURCES, TARGETS), 0.1)
        state = model.start(tensors(SOURCES, TARGETS)[0])
        logits = model.step(torch.tensor([BOS] * 3), state)
    rough.backward()  # type: ignore[no-untyped-call]
    assert rough.dtype == torch.float32 and logits.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0.0)


def test_learns_to_reverse() -> None:
    generator = torch.Generator().manual_seed(7)
    model = make_model(dim=48, heads=1, encoder_layers=2, decoder_layers=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    nll, tokens = torch.tensor(0.0), 0
    for _ in range(200):
        sentences = random_sentences(generator, torch.randint(2, 5, (24,), generator=generator).tolist())
        source, target_input, target_output = tensors(sentences, [s[::-1] for s in sentences])
        loss, nll = model.summed_loss(source, target_input, target_output, 0.0)
        tokens = int((target_output != PAD).sum())
        optimizer.zero_grad()
        (loss / tokens).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert float(nll) / tokens < 0.1


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"dim 15 must be even"):
        make_model(dim=15, heads=3)
    with pytest.raises(ValidationError, match=r"dim 16 is not a multiple of heads 3"):
        make_model(heads=3)
    config = ModelConfig.model_validate({"architecture": "rnn", "dim": 16, "heads": 2, "tie": "all"})
    with pytest.raises(UserError, match=r"20 and 30 pieces: set model.tie=target"):
        build_model(config, 20, 30, PAD, PAD)


def test_parameters_may_live_in_one_vector() -> None:
    model = make_model(tie="target")
    before, _ = model.summed_loss(*tensors(SOURCES, TARGETS), 0.1)
    flat = FlatParameters(model)
    loss, _ = model.summed_loss(*tensors(SOURCES, TARGETS), 0.1)
    torch.testing.assert_close(loss, before)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        flat.parameters -= 0.001 * flat.gradient
    after, _ = model.summed_loss(*tensors(SOURCES, TARGETS), 0.1)
    # To first order, the loss falls by the step times the squared norm of the gradient.
    expected = 0.001 * float(flat.gradient.square().sum())
    assert float(loss.detach() - after.detach()) == pytest.approx(expected, rel=0.2)


def test_recurrent_layers_are_computed_in_float32_where_autocast_would_take_float16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU; on the CPU autocast takes what it is told."""
    layer, stream = Lstm(8, 8, batch_first=True), torch.randn(3, 5, 8)
    state = torch.zeros(1, 3, 8), torch.zeros(1, 3, 8)
    expected, _ = layer(stream, state)

    def by_autocast(dtype: torch.dtype) -> Tensor:
        with torch.autocast("cpu", dtype):
            output: Tensor = layer(stream.to(dtype), (state[0].to(dtype), state[1].to(dtype)))[0]
        return output

    assert by_autocast(torch.bfloat16).dtype == torch.bfloat16
    monkeypatch.setattr(rnn, "_ALWAYS_FLOAT16", ("cpu",))
    in_bfloat16 = by_autocast(torch.bfloat16)
    assert in_bfloat16.dtype == torch.float32
    assert torch.equal(in_bfloat16, layer(stream.bfloat16().float(), state)[0])
    torch.testing.assert_close(in_bfloat16, expected, rtol=0.02, atol=0.02)
    assert by_autocast(torch.float16).dtype == torch.float16, "its gradients are scaled"
