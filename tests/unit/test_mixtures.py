"""Several corpora as one, and sentences that are cut into other pieces each time."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_run import TinyRun

from hpcasync.config.schema import parse_config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.collate import Ragged
from hpcasync.data.corpus import PreparedCorpus, TokenFile
from hpcasync.data.mixture import MixedFile, Mixture
from hpcasync.data.sampling import SubwordSampling
from hpcasync.errors import UserError


def token_file(lengths: list[int], first: int) -> TokenFile:
    """Sentence i holds the number `first + i` so often as its length says."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    tokens = np.repeat(np.arange(first, first + len(lengths)), lengths).astype(np.uint16)
    return TokenFile(tokens, offsets, max(lengths))


def test_every_sentence_is_there_as_often_as_its_corpus_is() -> None:
    one, two = token_file([1 + i % 5 for i in range(5000)], 0), token_file([2 + i % 3 for i in range(1500)], 10_000)
    mixed = MixedFile([one, two], (1, 3))
    assert len(mixed) == 5000 + 3 * 1500 and mixed.max_length == 5
    assert mixed.num_tokens == one.num_tokens + 3 * two.num_tokens
    flat, lengths = mixed.gather(np.arange(len(mixed)))
    assert lengths.tolist() == mixed.lengths(0, len(mixed)).tolist()
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    assert all(len(set(part)) == 1 for part in np.split(flat, starts[1:]))
    assert Counter(flat[starts].tolist()) == {
        **dict.fromkeys(range(5000), 1),
        **dict.fromkeys(range(10_000, 11_500), 3),
    }
    some = np.array([9000, 3, 4999, 3, 1024, 7])
    picked, picked_lengths = mixed.gather(some)
    assert picked.tolist() == np.concatenate([flat[starts[i] : starts[i] + lengths[i]] for i in some]).tolist()
    assert picked_lengths.tolist() == mixed.lengths(0, len(mixed))[some].tolist()
    assert mixed.lengths(1000, 3000).tolist() == lengths[1000:3000].tolist()
    # Dealt out evenly: each half of the epoch has about half of the smaller corpus.
    assert 0.4 < (flat[starts][: len(mixed) // 2] >= 10_000).sum() / 4500 < 0.6


def test_one_corpus_is_what_it_was(tiny_run: TinyRun) -> None:
    corpus = PreparedCorpus.open(tiny_run.corpus)
    alone = Mixture((corpus,), (1,))
    assert alone.tokens is corpus.train and alone.digest == corpus.digest
    twice = Mixture((corpus, corpus), (1, 2))
    twice.check_vocabularies()
    assert len(twice.tokens) == 3 * len(corpus.train) and twice.digest != corpus.digest


def test_another_vocabulary_is_refused(tiny_run: TinyRun) -> None:
    corpus = PreparedCorpus.open(tiny_run.corpus)
    files = {name: SimpleNamespace(sha256="other") for name in corpus.manifest.files}
    other = SimpleNamespace(path=Path("other"), manifest=SimpleNamespace(files=files))
    with pytest.raises(UserError, match=r"other has another source\.spm .*--source-model"):
        Mixture((corpus, other), (1, 1)).check_vocabularies()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"repeat": [1, 2]}, "a number for each of the 1 corpora, not 2"),
        ({"more": ["b"], "repeat": [1, 0]}, "repeat counts from 1, not 0"),
        ({"sampling": 1.5}, "sampling"),
    ],
)
def test_values_that_make_no_sense_are_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({"data": {"path": "a", **data}, "stop": {"updates": 1}}, "test")


def test_sampled_pieces_spell_the_same_text_and_depend_on_the_ticket_alone(tiny_run: TinyRun) -> None:
    corpus = PreparedCorpus.open(tiny_run.corpus)
    vocabularies = corpus.source_vocabulary, corpus.target_vocabulary
    plain, one, two = (
        BatchPlan(corpus.train, *vocabularies, batch_tokens=500, seed=1, sampling=sampling)
        for sampling in (None, *[SubwordSampling(0.3, 60)] * 2)
    )
    first = [one.batch(ticket).source for ticket in range(4)]
    again = [two.batch(ticket).source for ticket in reversed(range(4))][::-1]
    assert all(a.shape == b.shape and bool((a == b).all()) for a, b in zip(first, again, strict=True))
    expected = [plain.batch(ticket).source for ticket in range(4)]
    assert any(a.shape != b.shape for a, b in zip(first, expected, strict=True))
    for sampled, batch in zip(first, expected, strict=True):
        assert [vocabularies[0].decode(row) for row in sampled.tolist()] == [
            vocabularies[0].decode(row) for row in batch.tolist()
        ]


def test_a_sentence_that_would_become_too_long_or_has_unknown_pieces_stays(tiny_run: TinyRun) -> None:
    vocabulary = PreparedCorpus.open(tiny_run.corpus).source_vocabulary
    dog = vocabulary.encode("the old dog")
    sentences = Ragged.of([dog, [vocabulary.unk_id, *dog]])
    result = SubwordSampling(0.9, len(dog)).resegment(sentences, vocabulary, np.random.SeedSequence(1))
    assert result.flat.tolist() == sentences.flat.tolist()
