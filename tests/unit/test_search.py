"""Beam search against exhaustive and plain Python searches, on small models with random parameters."""

import itertools
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcasync.config.model import ModelConfig
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError
from hpcasync.nmt.beam import BeamSettings, NBest, beam_search, top_tokens
from hpcasync.nmt.build import build_model
from hpcasync.nmt.model import TranslationModel
from hpcasync.nmt.search import Hypothesis, Searcher, SearchSettings

PAD, UNK, BOS, EOS = 0, 1, 2, 3
FORBIDDEN = (PAD, UNK, BOS)
Found = list[tuple[float, list[int]]]


def make_model(num_pieces: int, seed: int, architecture: str = "rnn", sharpness: float = 3.0) -> TranslationModel:
    """A model whose random distributions are peaked enough that hypotheses differ clearly."""
    torch.manual_seed(seed)
    values = {"dim": 8, "ffn_dim": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "tie": "none"}
    config = ModelConfig.model_validate({"architecture": architecture, "max_length": 64, **values})
    model = build_model(config, num_pieces, num_pieces, PAD, PAD).eval()
    with torch.no_grad():
        model.get_parameter("output_weight").mul_(sharpness)
    return model


def make_source(sentences: list[list[int]]) -> Tensor:
    longest = max(map(len, sentences)) + 1
    return torch.tensor([[*s, EOS] + [PAD] * (longest - len(s) - 1) for s in sentences])


def search(model: TranslationModel, sentences: list[list[int]], limits: list[int], **values: float) -> list[Found]:
    given_settings = {"beam": 5, "nbest": 1, "length_penalty": 1.0, "patience": 1.0, **values}
    beam_settings = BeamSettings(bos_id=BOS, eos_id=EOS, forbidden=FORBIDDEN, **given_settings)  # type: ignore[arg-type]
    with torch.inference_mode():
        return as_lists(beam_search(model, make_source(sentences), torch.tensor(limits), beam_settings))


def as_lists(nbest: NBest) -> list[Found]:
    rows = zip(nbest.scores.tolist(), nbest.lengths.tolist(), nbest.tokens.tolist(), strict=True)
    return [[(s, t[:n]) for s, n, t in zip(*row, strict=True) if n] for row in rows]


def log_probs_of(model: TranslationModel, sentence: list[int]) -> Callable[[list[int]], list[float]]:
    """log P(next token | prefix), by the model's steps from the start, one sentence alone."""

    def next_log_probs(prefix: list[int]) -> list[float]:
        with torch.inference_mode():
            state = model.start(make_source([sentence]))
            logits = torch.zeros(1, 1)
            for token in [BOS, *prefix]:
                logits = model.step(torch.tensor([token]), state)
            return logits[0].log_softmax(0).tolist()

    return next_log_probs


def enumerate_all(model: TranslationModel, num_pieces: int, sentence: list[int], limit: int, penalty: float) -> Found:
    """Every sequence of at most `limit` tokens that ends, best first."""
    next_log_probs = log_probs_of(model, sentence)
    words = [i for i in range(num_pieces) if i not in (*FORBIDDEN, EOS)]
    found = []
    for length in range(1, limit + 1):
        for prefix in itertools.product(words, repeat=length - 1):
            total = sum(next_log_probs(list(prefix[:i]))[word] for i, word in enumerate([*prefix, EOS]))
            found.append((total / length**penalty, [*prefix, EOS]))
    return sorted(found, key=lambda item: -item[0])


def plain_beam_search(
    model: TranslationModel, sentence: list[int], limit: int, beam: int, penalty: float, num_finished: int
) -> Found:
    """In plain Python: no batch, and no other end than so many finished hypotheses."""
    next_log_probs = log_probs_of(model, sentence)
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: Found = []
    for length in range(1, limit + 1):
        extensions = [
            (total + log_prob, [*prefix, token])
            for total, prefix in live
            for token, log_prob in enumerate(next_log_probs(prefix))
            if token not in FORBIDDEN and (length < limit or token == EOS)
        ]
        extensions.sort(key=lambda item: -item[0])
        finished += [(total / length**penalty, tokens) for total, tokens in extensions[:beam] if tokens[-1] == EOS]
        live = [item for item in extensions if item[1][-1] != EOS][:beam]
        if len(finished) >= num_finished:
            break
    return sorted(finished, key=lambda item: -item[0])


def assert_same(found: Found, expected: Found) -> None:
    assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_beam_that_holds_everything_equals_enumeration(seed: int, penalty: float) -> None:
    model = make_model(6, seed)  # two words: at most 1 + 2 + 4 + 8 + 16 sequences
    found = search(model, [[4, 5, 5], [5]], [5, 3], beam=32, nbest=4, length_penalty=penalty)
    assert_same(found[0], enumerate_all(model, 6, [4, 5, 5], 5, penalty)[:4])
    assert_same(found[1], enumerate_all(model, 6, [5], 3, penalty)[:4])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    beam=st.integers(1, 6),
    penalty=st.sampled_from([0.0, 0.6, 1.0]),
    limit=st.integers(1, 9),
    data=st.data(),
)
def test_early_stopping_and_batching_lose_nothing(
    seed: int, beam: int, penalty: float, limit: int, data: st.DataObject
) -> None:
    nbest, patience = data.draw(st.integers(1, beam)), data.draw(st.sampled_from([1.0, 2.0]))
    model = make_model(9, seed, data.draw(st.sampled_from(["rnn", "transformer"])))
    sentences = [[4, 5, 6, 7], [8], [6, 6]]
    limits = [limit, max(1, limit - 2), limit + 1]
    found = search(model, sentences, limits, beam=beam, nbest=nbest, length_penalty=penalty, patience=patience)
    for hypotheses, sentence, longest in zip(found, sentences, limits, strict=True):
        num_finished = 1 if beam == 1 else 100 if penalty == 0 else int(beam * patience)
        expected = plain_beam_search(model, sentence, longest, beam, penalty, num_finished)
        scores = [score for score, _ in expected[: nbest + 1]]
        if all(a - b > 1e-4 for a, b in itertools.pairwise(scores)):
            assert_same(hypotheses, expected[:nbest])
        else:  # rounding decides between equal scores
            assert [s for s, _ in hypotheses] == pytest.approx(scores[:nbest], abs=1e-4)


@pytest.mark.parametrize("architecture", ["rnn", "transformer"])
def test_beam_1_is_greedy(architecture: str) -> None:
    model = make_model(30, 5, architecture)
    sentences = [[7, 8, 9], [4], [29, 28, 27, 26, 25]]
    for hypotheses, sentence in zip(search(model, sentences, [12, 12, 12], beam=1), sentences, strict=True):
        next_log_probs, tokens = log_probs_of(model, sentence), list[int]()
        while EOS not in tokens and len(tokens) < 11:
            choices = next_log_probs(tokens)
            tokens.append(max((i for i in range(30) if i not in FORBIDDEN), key=choices.__getitem__))
        tokens = tokens if EOS in tokens else [*tokens, EOS]
        assert [ids for _, ids in hypotheses] == [tokens]


def test_rows_leave_the_batch_as_their_hypotheses_end() -> None:
    model = make_model(9, 11, sharpness=1.0)
    rows: list[int] = []
    step = model.step

    def recording_step(tokens: Tensor, state: object) -> Tensor:
        rows.append(len(tokens))
        return step(tokens, state)  # type: ignore[arg-type]

    model.step = recording_step  # type: ignore[method-assign]
    search(model, [[4, 5], [6], [7, 8, 4]], [2, 4, 8], beam=3)
    assert rows[0] == 3  # one row a sentence: all hypotheses begin alike
    assert max(rows) <= 9
    assert rows[2] <= 6 and all(
        n <= 3 for n in rows[4:]
    )  # the first sentence is over after 2 tokens, the second after 4
    assert len(rows) <= 8


class UniformModel(TranslationModel):
    """Gives every token the same probability at every step."""

    class State:
        def __init__(self, num_rows: int) -> None:
            self.num_rows = num_rows

        def select_(self, rows: Tensor) -> None:
            self.num_rows = len(rows)

    def summed_loss(self, *_: object) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def start(self, source: Tensor) -> "UniformModel.State":
        return self.State(len(source))

    def step(self, tokens: Tensor, state: object) -> Tensor:
        return torch.zeros(len(tokens), 700)


def test_ties_go_to_the_smaller_id() -> None:
    found = search(UniformModel(), [[4], [5, 6]], [3, 3], beam=3, nbest=3, length_penalty=0.0)
    # The end has the smallest permitted id: it ends at once; 4 and 5 follow, and each of them ends next.
    assert [[tokens for _, tokens in f] for f in found] == [[[EOS], [4, EOS], [4, 4, EOS]]] * 2
    assert found[0][0][0] == pytest.approx(-math.log(700))


@given(
    st.integers(1, 6),
    st.lists(st.lists(st.integers(0, 3), min_size=1000, max_size=1000), min_size=1, max_size=3),
)
@settings(max_examples=20)
def test_top_tokens_is_a_stable_sort(k: int, rows: list[list[int]]) -> None:
    for width in (7, 1000):
        scores = torch.tensor([row[:width] for row in rows], dtype=torch.float32)
        values, ids = top_tokens(scores, k)
        expected = [sorted(range(width), key=lambda i: (-row[i], i))[:k] for row in scores.tolist()]
        assert ids.tolist() == expected
        assert values.tolist() == scores.gather(1, torch.tensor(expected)).tolist()


def test_top_tokens_of_distinct_values() -> None:
    scores = torch.randn(40, 4001, generator=torch.Generator().manual_seed(2))
    values, ids = top_tokens(scores, 5)
    expected = scores.topk(5, 1)
    assert torch.equal(values, expected.values) and torch.equal(ids, expected.indices)


# The text level.

WORDS = ["the", "a", "small", "big", "dog", "cat", "house", "tree", "sees", "likes", "under", "over", "and", "red"]


def sample_sentences(num: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 12, (num,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)) for n in lengths]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("vocabulary") / "model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_sentences(300, 1)),
        model_prefix=str(path),
        vocab_size=60,
        pad_id=PAD,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return Vocabulary.load(Path(f"{path}.model"))


def make_searcher(vocabulary: Vocabulary, max_length: int = 64, **values: float) -> Searcher:
    model = make_model(len(vocabulary), 3, "transformer")
    return Searcher(model, vocabulary, vocabulary, SearchSettings(**values), max_length=max_length)  # type: ignore[arg-type]


def rounded(translations: list[list[Hypothesis]]) -> list[list[tuple[str, float]]]:
    return [[(h.text, round(h.score, 3)) for h in hypotheses] for hypotheses in translations]


def test_batches_and_order_change_nothing(vocabulary: Vocabulary) -> None:
    sentences = [*sample_sentences(30, 9), "", "   ", "the cat"]
    searcher = make_searcher(vocabulary, nbest=2, beam=4)
    together = rounded(searcher.translate(sentences))
    assert rounded(make_searcher(vocabulary, nbest=2, beam=4, batch_tokens=1).translate(sentences)) == together
    assert rounded(list(searcher.stream(iter(sentences), read_ahead=7))) == together
    assert rounded([searcher.translate([sentence])[0] for sentence in sentences]) == together
    assert together[30] == together[31] == [("", 0.0)]
    assert any(text for hypotheses in together for text, _ in hypotheses)


def test_nbest_is_sorted_and_scores_add_up(vocabulary: Vocabulary) -> None:
    for hypotheses in make_searcher(vocabulary, nbest=4, beam=6, length_penalty=0.7).translate(["the cat", "a dog"]):
        assert len(hypotheses) == 4
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        assert len({h.tokens for h in hypotheses}) == 4
        for hypothesis in hypotheses:
            assert hypothesis.tokens[-1] == EOS
            assert hypothesis.text == vocabulary.decode(hypothesis.tokens).rstrip()
            assert hypothesis.score == pytest.approx(hypothesis.log_prob / len(hypothesis.tokens) ** 0.7)


def test_length_limits_hold(vocabulary: Vocabulary) -> None:
    searcher = make_searcher(vocabulary, max_length_factor=0.5, max_length_extra=2, beam=2)
    for sentence in sample_sentences(10, 4):
        (hypothesis,) = searcher.translate([sentence])[0]
        assert len(hypothesis.tokens) <= len(vocabulary.encode(sentence)) // 2 + 2


def test_a_long_sentence_is_cut_with_a_warning(vocabulary: Vocabulary, caplog: pytest.LogCaptureFixture) -> None:
    searcher = make_searcher(vocabulary, max_length=10, beam=2)
    long = "the cat sees the dog and the house over the tree under a big red house"
    with caplog.at_level(logging.WARNING):
        found = searcher.translate(["the cat", long], first_number=5)
    assert [record.getMessage() for record in caplog.records] == [
        f"sentence 6 has {len(vocabulary.encode(long))} pieces: only the first 9 are translated"
    ]
    assert 1 <= len(found[1][0].tokens) <= 10


def test_the_model_keeps_its_mode(vocabulary: Vocabulary) -> None:
    model = make_model(len(vocabulary), 3).train()
    Searcher(model, vocabulary, vocabulary, SearchSettings(), max_length=64).translate(["the cat"])
    assert model.training


def test_a_diverged_model_is_an_error(vocabulary: Vocabulary) -> None:
    model = make_model(len(vocabulary), 3)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    searcher = Searcher(model, vocabulary, vocabulary, SearchSettings(), max_length=64)
    with pytest.raises(UserError, match=r"sentence 4: the model's scores are not finite"):
        searcher.translate(["", "the cat"], first_number=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam": 0}, "beam must be at least 1, not 0"),
        ({"nbest": 6}, "nbest 6 is more than beam 5 can find"),
        ({"length_penalty": -0.1}, "length_penalty must be at least 0"),
        ({"max_length_extra": 0}, "max_length_extra at least 1"),
    ],
)
def test_settings_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SearchSettings(**values)  # type: ignore[arg-type]
