"""The Transformer: decoding, padding, sizes, gradients, learning."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hpcasync.config.model import ModelConfig
from hpcasync.errors import UserError
from hpcasync.nmt import packing
from hpcasync.nmt.build import build_model
from hpcasync.nmt.transformer import Transformer, TransformerState

PAD, BOS, EOS = 0, 2, 3
NUM_PIECES = 23
NORMS = ["pre", "post"]
TIES = ["all", "target", "none"]


def small_config(**values: object) -> ModelConfig:
    sizes = {"dim": 16, "ffn_dim": 24, "heads": 2, "encoder_layers": 2, "decoder_layers": 2, "max_length": 32}
    return ModelConfig.model_validate({**sizes, "dropout": 0.0, **values})


def small_model(**values: object) -> Transformer:
    torch.manual_seed(1)
    model = build_model(small_config(**values), NUM_PIECES, NUM_PIECES, PAD, PAD)
    assert isinstance(model, Transformer)
    # Biases and gains away from their initial values, so that a mistake in one shows.
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def random_batch(lengths: list[tuple[int, int]], seed: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target input and target output of sentences of the given lengths, end of sentence not counted."""
    generator = torch.Generator().manual_seed(seed)
    sides = [[torch.randint(4, NUM_PIECES, (length,), generator=generator) for length in pair] for pair in lengths]
    eos, bos = torch.tensor([EOS]), torch.tensor([BOS])
    rows = (
        [torch.cat([source, eos]) for source, _ in sides],
        [torch.cat([bos, target]) for _, target in sides],
        [torch.cat([target, eos]) for _, target in sides],
    )
    source, target_input, target_output = (pad_sequence(side, batch_first=True, padding_value=PAD) for side in rows)
    return source, target_input, target_output


BATCH = random_batch([(7, 6), (3, 9), (1, 1), (12, 4)])


def sentence(index: int) -> tuple[Tensor, Tensor, Tensor]:
    """One sentence pair of BATCH without padding."""
    source, target_input, target_output = (side[index : index + 1, : int((side[index] != PAD).sum())] for side in BATCH)
    return source, target_input, target_output


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tie", TIES)
def test_steps_with_cache_give_the_probabilities_of_the_full_forward(norm: str, tie: str) -> None:
    model = small_model(norm=norm, tie=tie).eval()
    source, target_input, target_output = BATCH
    with torch.no_grad():
        state = model.start(source)
        log_probabilities = torch.zeros(len(source))
        for position in range(target_input.shape[1]):
            step = model.step(target_input[:, position], state).log_softmax(-1)
            target = target_output[:, position, None]
            log_probabilities += (step.gather(1, target) * (target != PAD)).squeeze(1)
        for index in range(len(source)):
            _, expected = model.summed_loss(*sentence(index), 0.0)
            assert -log_probabilities[index] == pytest.approx(expected.item(), abs=2e-4)


def test_selected_rows_go_on_as_if_they_had_been_alone() -> None:
    model = small_model().eval()
    source, target_input, _ = BATCH
    rows = torch.tensor([3, 3, 0])
    with torch.no_grad():
        state = model.start(source)
        for position in range(2):
            model.step(target_input[:, position], state)
        state.select_(rows)
        assert state.num_rows == 3
        tokens = torch.tensor([7, 8, 9])
        logits = model.step(tokens, state)
        for row, index in enumerate(rows.tolist()):
            alone = model.start(sentence(index)[0])
            for token in [*target_input[index, :2].tolist(), tokens[row].item()]:
                expected = model.step(torch.tensor([token]), alone)
            torch.testing.assert_close(logits[row], expected[0], atol=1e-4, rtol=1e-4)


def test_a_cache_grows_beyond_its_first_block() -> None:
    model = small_model().eval()
    source, target_input, target_output = random_batch([(4, 29)])
    with torch.no_grad():
        state = model.start(source)
        steps = torch.stack([model.step(token[None], state)[0] for token in target_input[0]])
        loss = torch.nn.functional.cross_entropy(steps, target_output[0], reduction="sum")
        assert loss.item() == pytest.approx(model.summed_loss(source, target_input, target_output, 0.0)[1].item())


def test_reordering_within_a_sentence_copies_no_memory() -> None:
    model = small_model().eval()
    with torch.no_grad():
        state = model.start(BATCH[0])
        assert isinstance(state, TransformerState)
        state.select_(torch.tensor([0, 0, 1, 1]))
        memory = state.memory
        model.step(torch.tensor([4, 5, 6, 7]), state)
        state.select_(torch.tensor([1, 0, 3, 3]))
        assert state.memory is memory
        state.select_(torch.tensor([0, 2]))
        assert state.memory is not memory


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_batch_has_the_loss_and_the_gradient_of_its_sentences(
    norm: str, is_packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_packed:  # as on a GPU
        monkeypatch.setattr(packing, "_MIN_PADDING", 1.0)
    model = small_model(norm=norm)
    together = model.summed_loss(*BATCH, 0.1)
    alone = [model.summed_loss(*sentence(index), 0.1) for index in range(4)]
    for kind in (0, 1):
        assert together[kind].item() == pytest.approx(sum(losses[kind].item() for losses in alone), rel=1e-5)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(sum((losses[0] for losses in alone), torch.zeros(())), parameters)
    for gradient, expected_gradient in zip(torch.autograd.grad(together[0], parameters), expected, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, atol=2e-4, rtol=1e-3)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5), st.integers(1, 4))
def test_more_padding_changes_nothing(lengths: list[tuple[int, int]], extra: int) -> None:
    model = small_model()
    batch = random_batch(lengths)
    source, target_input, target_output = (torch.nn.functional.pad(side, (0, extra), value=PAD) for side in batch)
    padded_losses = model.summed_loss(source, target_input, target_output, 0.1)
    for loss, padded_loss in zip(model.summed_loss(*batch, 0.1), padded_losses, strict=True):
        assert padded_loss.item() == pytest.approx(loss.item(), rel=1e-5)


def test_training_and_inference_compute_the_same_without_dropout() -> None:
    # They take different kernels on the CPU.
    model = small_model()
    with torch.no_grad():
        inference = model.eval().summed_loss(*BATCH, 0.1)
    for loss, expected in zip(model.train().summed_loss(*BATCH, 0.1), inference, strict=True):
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_dropout_acts_in_training_only_and_follows_the_seed() -> None:
    model = small_model(dropout=0.3, attention_dropout=0.3)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model.summed_loss(*BATCH, 0.1)[0].item()

    assert loss(1) == loss(1) != loss(2)
    model.eval()
    assert loss(1) == loss(2)


def test_gradients_accumulate_in_views_of_one_vector() -> None:
    model = small_model()
    parameters = list(model.parameters())
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(model.summed_loss(*BATCH, 0.1)[0], parameters)])
    flat = torch.cat([parameter.data.flatten() for parameter in parameters])
    gradient = torch.zeros_like(flat)
    start = 0
    for parameter in parameters:
        stop = start + parameter.numel()
        parameter.data = flat[start:stop].view_as(parameter)
        parameter.grad = gradient[start:stop].view_as(parameter)
        start = stop
    for times in (1, 2):
        model.summed_loss(*BATCH, 0.1)[0].backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(gradient, times * expected, atol=1e-4, rtol=1e-4)
    flat.zero_()
    assert model.source_embedding.weight.abs().sum() == 0


@pytest.mark.parametrize("norm", NORMS)
def test_learns_to_copy_a_few_sentences(norm: str) -> None:
    model = small_model(norm=norm, dim=32, ffn_dim=64)
    source, target_input, target_output = random_batch([(5, 5), (4, 4), (6, 6), (3, 3)])
    target_output[target_output > EOS] = source[source > EOS]
    target_input[:, 1:] = target_output[:, :-1].masked_fill(target_output[:, :-1] == EOS, PAD)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = model.summed_loss(source, target_input, target_output, 0.0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    num_tokens = int((target_output != PAD).sum())
    assert model.summed_loss(source, target_input, target_output, 0.0)[1].item() / num_tokens < 0.1


@pytest.mark.parametrize(
    ("preset", "norm", "expected"),
    [
        # 37,000 x 512 embeddings; 6 x (attention 4 (512^2 + 512), feed-forward 2 x 512 x 2048 + 2048 + 512, 2 norms);
        # 6 x (two attentions, feed-forward, 3 norms); with pre-norm two norms of 2 x 512 at the ends.
        ("base", "post", 18_944_000 + 6 * 3_152_384 + 6 * 4_204_032),
        ("base", "pre", 18_944_000 + 6 * 3_152_384 + 6 * 4_204_032 + 2_048),
        ("big", "pre", 37_888_000 + 6 * 12_596_224 + 6 * 16_796_672 + 4_096),
    ],
)
def test_number_of_parameters(preset: str, norm: str, expected: int) -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig.model_validate({"preset": preset, "norm": norm}), 37_000, 37_000, PAD, PAD)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(("tie", "num_matrices"), [("all", 1), ("target", 2), ("none", 3)])
def test_tied_matrices_are_one_parameter(tie: str, num_matrices: int) -> None:
    shapes = [tuple(parameter.shape) for parameter in small_model(tie=tie).parameters()]
    assert shapes.count((NUM_PIECES, 16)) == num_matrices


@pytest.mark.parametrize("norm", NORMS)
def test_a_new_model_is_about_as_good_as_guessing(norm: str) -> None:
    torch.manual_seed(1)
    model = build_model(small_config(norm=norm, dim=64), 1000, 1000, PAD, PAD)
    _, negative_log_likelihood = model.summed_loss(*BATCH, 0.0)
    num_tokens = int((BATCH[2] != PAD).sum())
    assert negative_log_likelihood.item() / num_tokens == pytest.approx(math.log(1000), rel=0.15)


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    model = small_model(dim=64, ffn_dim=128)
    parameters = list(model.parameters())
    loss, _ = model.summed_loss(*BATCH, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        low_loss, low_likelihood = model.summed_loss(*BATCH, 0.1)
    assert low_loss.dtype == low_likelihood.dtype == torch.float32
    assert low_loss.item() == pytest.approx(loss.item(), rel=0.01)
    gradients = [torch.cat([g.flatten() for g in torch.autograd.grad(each, parameters)]) for each in (loss, low_loss)]
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99


def test_a_joint_vocabulary_is_needed_to_tie_all() -> None:
    with pytest.raises(UserError, match=r"20 and 30 pieces.*model\.tie=target"):
        build_model(small_config(tie="all"), 20, 30, PAD, PAD)
    build_model(small_config(tie="target"), 20, 30, PAD, PAD)


def test_sentences_beyond_the_longest_are_refused() -> None:
    model = small_model()
    batch = random_batch([(32, 3)])
    with pytest.raises(UserError, match=r"33 tokens.*max_length 32"):
        model.summed_loss(*batch, 0.0)
    with pytest.raises(UserError, match=r"33 tokens.*max_length 32"):
        model.start(batch[0])
