"""Preparing a corpus: filters, vocabularies, determinism, and text that is refused."""

import gzip
import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from click.testing import CliRunner, Result
from corpus_text import NUM_PAIRS, content, options, sentence_pairs, write

from hpcasync.cli.data import data
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.encode import Limits
from hpcasync.data.prepare import prepare
from hpcasync.errors import UserError


def test_corpus_holds_every_pair_in_order(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    manifest = prepare(*texts, tmp_path / "out", options(source_language="en", target_language="de"))
    corpus = PreparedCorpus.open(tmp_path / "out")
    corpus.verify()
    assert corpus.manifest == manifest
    assert (manifest.source_language, manifest.target_language, manifest.joint) == ("en", "de", True)
    assert len(corpus.train) == NUM_PAIRS == manifest.pairs.read == manifest.pairs.kept
    for index, (source, target) in enumerate(sentence_pairs()):
        assert corpus.source_vocabulary.decode(corpus.train.source_file[index]) == source
        assert corpus.target_vocabulary.decode(corpus.train.target_file[index]) == target
    lengths = corpus.train.source_file.lengths(0, NUM_PAIRS)
    assert manifest.source.num_tokens == lengths.sum()
    assert manifest.source.max_length == lengths.max()
    assert manifest.source.num_pieces == len(corpus.source_vocabulary) == 60
    assert (tmp_path / "out/source.spm").read_bytes() == (tmp_path / "out/target.spm").read_bytes()
    assert not corpus.has_split("valid") and corpus.has_split("train")


def test_manifest_digests_are_those_of_the_files(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    prepare(*texts, tmp_path / "out", options(held_out={"test": texts}))
    files = content(tmp_path / "out")
    manifest = json.loads(files.pop("manifest.json"))
    assert set(manifest["files"]) == set(files)
    for name, record in manifest["files"].items():
        assert record == {"size": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}


def test_same_input_gives_the_same_bytes_for_any_number_of_processes(tmp_path: Path) -> None:
    texts = write(tmp_path / "long", sentence_pairs(10_000))  # three chunks
    for name, num_processes in (("one", 1), ("again", 1), ("two", 2)):
        prepare(*texts, tmp_path / name, options(num_processes=num_processes))
    assert content(tmp_path / "one") == content(tmp_path / "again") == content(tmp_path / "two")


def test_gzip_input_gives_the_same_corpus(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    packed = texts[0].with_suffix(".gz")
    packed.write_bytes(gzip.compress(texts[0].read_bytes()))
    prepare(*texts, tmp_path / "plain", options())
    prepare(packed, texts[1], tmp_path / "packed", options())
    assert content(tmp_path / "plain") == content(tmp_path / "packed")


def test_each_dropped_pair_is_counted_under_its_first_reason(tmp_path: Path) -> None:
    # A piece for each character and for the start of a word: n letters are n + 1 pieces.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a"]), model_writer=model, vocab_size=5, model_type="char", minloglevel=2
    )
    (tmp_path / "model").write_bytes(model.getvalue())
    empty = [(0, 0), (0, 1), (1, 0)]
    too_long = [(20, 20), (1, 20), (20, 1)]
    unequal = [(8, 1), (1, 8)]
    kept = [(19, 19), (7, 1), (1, 7)]
    pairs = [("a" * source, "a" * target or " \t") for source, target in empty + too_long + unequal + kept]
    models: dict[str, Any] = {"source_model": tmp_path / "model", "target_model": tmp_path / "model"}
    limited = options(limits=Limits(max_length=20, max_ratio=4.0), **models)
    counts = prepare(*write(tmp_path / "mixed", pairs), tmp_path / "out", limited).pairs
    assert (counts.read, counts.dropped_empty, counts.dropped_length, counts.dropped_ratio) == (11, 3, 3, 2)
    train = PreparedCorpus.open(tmp_path / "out").train
    assert train.source_file.lengths(0, len(train)).tolist() == [20, 8, 2]
    assert train.target_file.lengths(0, len(train)).tolist() == [20, 2, 8]


def test_separate_vocabularies(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    manifest = prepare(*texts, tmp_path / "out", options(joint=False))
    assert not manifest.joint
    corpus = PreparedCorpus.open(tmp_path / "out")
    assert corpus.target_vocabulary.decode(corpus.train.target_file[0]) == sentence_pairs()[0][1]
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    assert source.unk_id in source.encode("grün") and target.unk_id not in target.encode("grün")


def test_given_models_are_used_as_they_are(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    prepare(*texts, tmp_path / "joint", options())
    prepare(*texts, tmp_path / "separate", options(joint=False))
    one, two = tmp_path / "separate/source.spm", tmp_path / "separate/target.spm"
    both = prepare(*texts, tmp_path / "a", options(source_model=one, target_model=two))
    assert not both.joint and both.options.vocab_size is None
    assert (tmp_path / "a/train.source.tokens").read_bytes() == (tmp_path / "separate/train.source.tokens").read_bytes()
    joint = tmp_path / "joint/source.spm"
    assert prepare(*texts, tmp_path / "b", options(source_model=joint, target_model=joint)).joint
    half = prepare(*texts, tmp_path / "c", options(40, source_model=one))  # the other is trained
    assert (half.joint, half.source.num_pieces, half.target.num_pieces) == (False, 60, 40)
    with pytest.raises(UserError, match="--joint needs one vocabulary"):
        prepare(*texts, tmp_path / "d", options(joint=True, source_model=one, target_model=two))


def test_large_vocabularies_take_four_bytes_a_piece(tmp_path: Path) -> None:
    model = io.BytesIO()
    letters = "abcdefghijklmnopqrstuvwxyzäöüßéèêàçñ"
    words = ["".join(word) for word in itertools.product(letters, letters, letters[:6], "xyz", "abc")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=model, vocab_size=66_000, model_type="word", minloglevel=2
    )
    (tmp_path / "model").write_bytes(model.getvalue())
    chosen = words[-300:]
    both: dict[str, Any] = {"source_model": tmp_path / "model", "target_model": tmp_path / "model"}
    manifest = prepare(
        *write(tmp_path / "text", list(zip(chosen, words, strict=False))), tmp_path / "out", options(**both)
    )
    assert (manifest.source.dtype, manifest.source.num_tokens) == ("<u4", 300)
    corpus = PreparedCorpus.open(tmp_path / "out")
    assert [corpus.source_vocabulary.decode(corpus.train.source_file[index]) for index in range(300)] == chosen
    assert max(int(corpus.train.source_file[index][0]) for index in range(300)) > 1 << 16


def test_held_out_text_is_kept_as_it_is(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    pairs = [("A  strange\u2028 LINE", "Eine  „Zeile“"), ("", "leer"), ("x" * 3000, "y")]
    held_out = write(tmp_path / "valid", pairs)
    manifest = prepare(*texts, tmp_path / "out", options(held_out={"valid": held_out}))
    assert manifest.held_out == {"valid": 3}
    for path in held_out:
        path.unlink()
    corpus = PreparedCorpus.open(tmp_path / "out")
    assert corpus.has_split("valid")
    assert corpus.raw("valid") == ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    with pytest.raises(UserError, match="has no test text, but valid: prepare the corpus with --test"):
        corpus.raw("test")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"a\nb\n", r"text\.en has 300 lines but .*text\.de has 2"),
        (b"gr\xfcn\n" * NUM_PAIRS, r"text\.de, line 1: invalid UTF-8"),
        (None, r"cannot read .*text\.de: No such file"),
        (b"\n" * NUM_PAIRS, r"no pair of .* passes the filters: of 300 pairs, 300 have an empty side"),
    ],
)
def test_broken_input_leaves_nothing_behind(
    tmp_path: Path, texts: tuple[Path, Path], broken: bytes | None, message: str
) -> None:
    texts[1].unlink()
    if broken is not None:
        texts[1].write_bytes(broken)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        prepare(*texts, tmp_path / "out", options())
    assert set(tmp_path.iterdir()) == before


def test_misaligned_validation_text_is_refused(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    held_out = write(tmp_path / "valid", [("a", "b")])
    held_out[0].write_text("a\na\n")
    with pytest.raises(UserError, match=r"valid\.en has 2 lines but .*valid\.de has 1"):
        prepare(*texts, tmp_path / "out", options(held_out={"valid": held_out}))


def test_training_text_as_validation_text_is_warned_of(
    tmp_path: Path, texts: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(*texts, tmp_path / "out", options(held_out={"valid": texts}))
    assert "Warning: the valid text is the training text" in capsys.readouterr().err


def run(*arguments: object) -> Result:
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def test_command_prepares_and_checks(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    out = tmp_path / "out"
    arguments = ("prepare", *texts, "--valid", *texts, "--out", out, "--vocab-size", 60, "--processes", 1)
    result = run(*arguments, "--source-language", "en", "--max-length", 99)
    assert result.exit_code == 0, result.output
    assert "pairs read                              300" in result.output
    assert "dropped: over 99 pieces" in result.output
    assert f"data.path={out}" in result.output
    checked = run("check", out)
    assert checked.exit_code == 0
    assert "8 files agree with their digests" in checked.output


def test_command_check_finds_a_changed_byte(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    prepare(*texts, tmp_path / "out", options())
    tokens = tmp_path / "out/train.target.tokens"
    changed = bytearray(tokens.read_bytes())
    changed[7] ^= 1
    tokens.write_bytes(changed)
    PreparedCorpus.open(tmp_path / "out")
    result = run("check", tmp_path / "out")
    assert isinstance(result.exception, UserError)
    assert "the content of train.target.tokens has changed" in str(result.exception)
