"""Vocabularies: special ids, round trips, models made elsewhere, training."""

import io
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from hpcasync.data.encode import token_dtype
from hpcasync.data.subwords import SubwordOptions, train_subwords
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError

_WORDS = ["".join(letters) for letters in itertools.product("rstmn", "aeou", "lkdp", "ai")]
LINES = [f"the small {' '.join(random.Random(number).sample(_WORDS, 8))} number {number} ." for number in range(200)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text("".join(line + "\n" for line in LINES))
    return path


def trained(path: Path, text: Path, size: int = 60, **options: Any) -> Vocabulary:
    path.write_bytes(train_subwords([text], len(LINES), SubwordOptions(vocab_size=size, **options)))
    return Vocabulary.load(path)


def foreign(path: Path, **options: Any) -> Vocabulary:
    """A model as spm_train makes it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=60, minloglevel=2, **options
    )
    path.write_bytes(model.getvalue())
    return Vocabulary.load(path)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_trained_model_has_the_agreed_ids_and_round_trips(tmp_path: Path, text: Path, model_type: str) -> None:
    vocabulary = trained(tmp_path / "model", text, model_type=model_type)
    assert (vocabulary.pad_id, vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 1, 2, 3)
    assert len(vocabulary) == 60
    ids = vocabulary.encode("the small rala number 3 .")
    assert min(ids) > 3
    assert vocabulary.decode(ids) == "the small rala number 3 ."
    assert vocabulary.encode_many(["the small sepa", ""]) == [vocabulary.encode("the small sepa"), []]


def test_decode_ignores_specials_only(tmp_path: Path, text: Path) -> None:
    vocabulary = trained(tmp_path / "model", text)
    ids = vocabulary.encode("small tuka")
    assert vocabulary.decode([2, *ids, 3, 0, 0]) == "small tuka"
    assert "\u2047" in vocabulary.decode([*ids, vocabulary.unk_id])
    assert vocabulary.pieces([2, *ids, 0])[0] == "<s>"


def test_model_without_padding_gets_one_id_at_the_end(tmp_path: Path) -> None:
    vocabulary = foreign(tmp_path / "model")  # spm_train's own defaults: unk 0, bos 1, eos 2, no padding
    assert (vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 1, 2)
    assert vocabulary.pad_id == 60
    assert len(vocabulary) == 61
    ids = vocabulary.encode("the small sepa")
    assert vocabulary.decode([1, *ids, 2, 60]) == "the small sepa"
    assert vocabulary.pieces([60]) == ["<pad>"]


def test_model_without_any_special_gets_them_in_order(tmp_path: Path) -> None:
    vocabulary = foreign(tmp_path / "model", bos_id=-1, eos_id=-1)
    assert (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id) == (60, 61, 62)
    assert len(vocabulary) == 63


@pytest.mark.parametrize("content", [b"", b"no model at all\n", b"\x00" * 100])
def test_other_files_are_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no SentencePiece model"):
        Vocabulary.load(path)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: No such file"):
        Vocabulary.load(tmp_path / "absent")


def test_training_is_deterministic(tmp_path: Path, text: Path) -> None:
    options = SubwordOptions(vocab_size=50)
    assert train_subwords([text], len(LINES), options) == train_subwords([text], len(LINES), options)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_large_a_vocabulary_names_the_largest(tmp_path: Path, text: Path, model_type: str) -> None:
    with pytest.raises(UserError, match=r"--vocab-size 5000 is too large .* at most \d+ pieces") as caught:
        trained(tmp_path / "model", text, 5000, model_type=model_type)
    largest = int(str(caught.value).split("at most ")[1].split()[0])
    assert len(trained(tmp_path / "model", text, largest, model_type=model_type)) == largest


def test_too_small_a_vocabulary_names_the_smallest(tmp_path: Path, text: Path) -> None:
    with pytest.raises(UserError, match=r"--vocab-size 9 is too small .* need \d+ pieces"):
        trained(tmp_path / "model", text, 9)


def test_text_of_blank_lines_trains_no_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "blank"
    path.write_text("\n \n\n")
    with pytest.raises(UserError, match="there is no sentence"):
        train_subwords([path], 3, SubwordOptions())


def test_sample_is_spread_over_the_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("".join(letter * 3 + "\n" for letter in "abcdefghijklmnop" for _ in range(50)))
    options = SubwordOptions(vocab_size=22, sample_sentences=16, model_type="bpe")  # 4 special, the mark, 17 free
    model = tmp_path / "model"
    model.write_bytes(train_subwords([path], 800, options))
    vocabulary = Vocabulary.load(model)
    assert vocabulary.unk_id not in vocabulary.encode("abcdefghijklmnop")


def test_token_type_follows_the_size(tmp_path: Path, text: Path) -> None:
    vocabulary = trained(tmp_path / "model", text)
    assert token_dtype(vocabulary) == "<u2"
    model = io.BytesIO()
    words = (
        f"{a}{b}{c}"
        for a in map(chr, range(97, 138))
        for b in map(chr, range(97, 138))
        for c in map(chr, range(97, 138))
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=words, model_writer=model, vocab_size=65_536, model_type="word", minloglevel=2
    )
    large = tmp_path / "large"
    large.write_bytes(model.getvalue())
    assert token_dtype(Vocabulary.load(large)) == "<u4"
