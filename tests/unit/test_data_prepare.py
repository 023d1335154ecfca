"""Preparing a corpus: filters, vocabularies, determinism, and every way it can go wrong."""

import gzip
import hashlib
import io
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import sentencepiece
from click.testing import CliRunner, Result

from hpcasync.cli.data import data
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.encode import Limits, encode_pairs
from hpcasync.data.prepare import PrepareOptions, prepare
from hpcasync.data.subwords import SubwordOptions
from hpcasync.errors import UserError

NUM_PAIRS = 300
_NOUNS = {"house": "haus", "river": "fluss", "table": "tisch", "street": "straße", "dog": "hund", "night": "nacht",
          "garden": "garten", "window": "fenster", "market": "markt", "green": "grün", "old": "alt", "sees": "sieht",
          }  # fmt: skip
_WORDS = _NOUNS | {one + two: _NOUNS[one] + _NOUNS[two] for one, two in itertools.permutations(_NOUNS, 2)}


def sentence_pairs(num_pairs: int = NUM_PAIRS, seed: int = 0) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    chosen = [generator.choices(list(_WORDS), k=generator.randint(4, 9)) for _ in range(num_pairs)]
    return [(" ".join(words), " ".join(_WORDS[word] for word in reversed(words))) for words in chosen]


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "text", sentence_pairs())


def write(stem: Path, pairs: list[tuple[str, str]]) -> tuple[Path, Path]:
    paths = stem.with_suffix(".en"), stem.with_suffix(".de")
    for side, path in enumerate(paths):
        path.write_text("".join(pair[side] + "\n" for pair in pairs))
    return paths


def options(vocab_size: int = 60, **changes: Any) -> PrepareOptions:
    return PrepareOptions(subwords=SubwordOptions(vocab_size=vocab_size), **changes)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


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


def test_a_finished_corpus_is_replaced_only_when_asked(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    prepare(*texts, tmp_path / "out", options())
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match=r"already holds a prepared corpus; .*--overwrite"):
        prepare(*texts, tmp_path / "out", options(50))
    assert content(tmp_path / "out") == before
    prepare(*texts, tmp_path / "out", options(50, overwrite=True))
    assert PreparedCorpus.open(tmp_path / "out").manifest.source.num_pieces == 50
    assert {path.name for path in tmp_path.iterdir()} == {"text.en", "text.de", "out"}


def test_a_failed_overwrite_keeps_the_old_corpus(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    prepare(*texts, tmp_path / "out", options())
    before = content(tmp_path / "out")
    with pytest.raises(UserError, match="too large"):
        prepare(*texts, tmp_path / "out", options(5000, overwrite=True))
    assert content(tmp_path / "out") == before


def test_a_foreign_directory_is_never_touched(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    foreign = tmp_path / "out"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"did not write \(thesis\.tex\)"):
        prepare(*texts, foreign, options(overwrite=True))
    (foreign / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"did not write \(thesis\.tex\)"):
        prepare(*texts, foreign, options(overwrite=True))
    assert (foreign / "thesis.tex").read_text() == "years of work"
    (foreign / "thesis.tex").rename(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match="is no manifest that this release reads"):
        prepare(*texts, foreign, options(overwrite=True))
    with pytest.raises(UserError, match="is a file"):
        prepare(*texts, tmp_path / "thesis.tex", options(overwrite=True))


def test_a_file_added_to_a_corpus_is_never_deleted(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    prepare(*texts, tmp_path / "out", options())
    (tmp_path / "out/notes").write_text("mine")
    with pytest.raises(UserError, match=r"did not write \(notes\)"):
        prepare(*texts, tmp_path / "out", options(overwrite=True))
    assert (tmp_path / "out/notes").read_text() == "mine"


def test_what_a_crash_left_is_redone(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    prepare(*texts, tmp_path / "clean", options())
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "lock").touch()
    (partial / "train.source.tokens").write_bytes(b"half")
    (partial / "valid.source.txt").write_bytes(b"of another run")
    with pytest.raises(UserError, match=r"out\.partial is what an interrupted"):
        PreparedCorpus.open(tmp_path / "out")
    prepare(*texts, tmp_path / "out", options())
    assert content(tmp_path / "out") == content(tmp_path / "clean")
    assert not partial.exists()


def test_a_killed_command_leaves_no_process_and_is_redone(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    prepare(*texts, tmp_path / "models", options())
    long = write(tmp_path / "long", sentence_pairs(2000) * 200)
    model = tmp_path / "models/source.spm"
    arguments = ["--source-model", model, "--target-model", model, "--processes", "2", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "hpcasync", "data", "prepare", *map(str, [*long, *arguments])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tokens = tmp_path / "out.partial/train.source.tokens"
    wait_until(lambda: tokens.exists() and tokens.stat().st_size > 0)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert children
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert not (tmp_path / "out").exists()
    both: dict[str, Any] = {"source_model": model, "target_model": model}
    prepare(*texts, tmp_path / "out", options(**both))
    prepare(*texts, tmp_path / "clean", options(**both))
    assert content(tmp_path / "out") == content(tmp_path / "clean")


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("moment", range(4))
def test_a_killed_encoding_process_is_told(tmp_path: Path, texts: tuple[Path, Path], moment: int) -> None:
    """Killed at several moments: also in the middle of a message, which must not be waited for."""
    prepare(*texts, tmp_path / "models", options())
    long = write(tmp_path / "long", sentence_pairs(2000) * 100)
    models = tmp_path / "models/source.spm", tmp_path / "models/target.spm"
    chunks = encode_pairs(*long, models, Limits(), num_processes=2)
    next(chunks)
    time.sleep(moment * 0.01)
    for child in psutil.Process().children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    with pytest.raises(UserError, match="a process that encodes the corpus was killed"):
        list(chunks)


def test_a_crash_between_the_renames_is_redone(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    prepare(*texts, tmp_path / "clean", options())
    prepare(*texts, tmp_path / "out.replaced", options(50))
    prepare(*texts, tmp_path / "out.partial", options())
    prepare(*texts, tmp_path / "out", options())
    assert content(tmp_path / "out") == content(tmp_path / "clean")
    assert {path.name for path in tmp_path.iterdir()} == {"text.en", "text.de", "out", "clean"}


def test_a_foreign_partial_directory_is_never_touched(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "mine").touch()
    with pytest.raises(UserError, match=r"out\.partial is in the way and holds mine"):
        prepare(*texts, tmp_path / "out", options())
    assert (partial / "mine").exists()


def test_two_commands_never_write_one_directory(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    partial = tmp_path / "out.partial"
    hold = "import sys; from pathlib import Path; from hpcasync.sole_writer import sole_writer\n" + (
        "with sole_writer(Path(sys.argv[1]), ''): print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, partial], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "\n"
    with pytest.raises(UserError, match=f"out.partial is being written by process {other.pid} on .*: wait for it or"):
        prepare(*texts, tmp_path / "out", options())
    other.communicate()
    prepare(*texts, tmp_path / "out", options())
    assert "lock" not in content(tmp_path / "out") and not partial.exists()


def test_an_empty_directory_is_taken(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    (tmp_path / "out").mkdir()
    prepare(*texts, tmp_path / "out", options())
    assert PreparedCorpus.open(tmp_path / "out").manifest.pairs.kept == NUM_PAIRS


def test_an_unwritable_place_is_named(tmp_path: Path, texts: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"cannot write .*text\.en.*Not a directory"):
        prepare(*texts, texts[0] / "out", options())


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
