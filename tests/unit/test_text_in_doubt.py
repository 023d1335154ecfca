"""Text that vocabularies have trouble with: long lines, CR line ends, normalisation, reserved names, foreign models."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_input import PATIENCE_SECONDS, check_refusal
from forked_commands import FinishedCommand, ForkedCommands
from tiny_run import TinyRun

from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.manifest import read_manifest

Prepare = Callable[..., FinishedCommand]


@pytest.fixture
def prepare(tmp_path: Path, commands: ForkedCommands) -> Prepare:
    """`data prepare` of sources and targets, and of valid text, into the directory corpus."""

    def run(sources: list[str], targets: list[str], *options: str, end: str = "\n") -> FinishedCommand:
        for name, lines in (("a.src", sources), ("a.tgt", targets)):
            (tmp_path / name).write_bytes("".join(line + end for line in lines).encode())
        words = ("data", "prepare", "a.src", "a.tgt", "--out", "corpus", "--processes", "1", *options)
        return commands(*words, cwd=tmp_path, timeout=PATIENCE_SECONDS)

    return run


def sentences(number: int, words: str, length: int = 8) -> list[str]:
    draw = random.Random(1)
    return [" ".join(draw.choice(words.split()) for _ in range(length)) for _ in range(number)]


def test_long_lines_teach_the_vocabulary_too(tmp_path: Path, prepare: Prepare) -> None:
    # 5,000 bytes of what no short line holds: beyond SentencePiece's own limit.
    long = " ".join(sentences(150, "zebra yacht xylophone quilt jovial"))
    assert 4192 < len(long) < 9000
    text = [*sentences(200, "the dog sees a cat"), *[long] * 20]
    done = prepare(text, text, "--vocab-size", "30", "--max-length", "100000")
    assert done.returncode == 0 and "left out" not in done.stderr, done.stderr
    assert read_manifest(tmp_path / "corpus").source.num_unknown == 0


def test_lines_that_are_left_out_are_counted(prepare: Prepare) -> None:
    text = [*sentences(300, "the dog sees a cat"), "no\0thing", "the dog " * 9000]
    done = prepare(text, text, "--vocab-size", "17")
    assert done.returncode == 0, done.stderr
    assert "2 line(s) with more than 65,536 bytes" in done.stderr and "2 line(s) with a NUL character" in done.stderr
    assert "left out of the training of the vocabulary" in done.stderr
    assert "the source text holds NUL characters" in done.stderr


def test_line_ends_of_old_macintoshes_are_named(prepare: Prepare) -> None:
    text = sentences(300, "the dog sees a cat")
    done = prepare(text, text, "--vocab-size", "18", end="\r")
    check_refusal(
        done.returncode, done.stderr, ("a.src has 300 carriage returns (CR) but 0 line feeds",), "`tr '\\r' '\\n'`"
    )
    assert prepare(text, text, "--vocab-size", "18", end="\r\n").returncode == 0


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_normalisation_is_an_option_and_what_it_changes_is_told(tmp_path: Path, prepare: Prepare, rule: str) -> None:
    sources, targets = sentences(300, "the dog sees a cat"), sentences(300, "10m² well… yes no")
    (tmp_path / "v.src").write_text("the dog\na cat\n")
    (tmp_path / "v.tgt").write_text("10m² no\nyes\n")
    options = ("--vocab-size", "18", "--normalization", rule, "--separate", "--valid", "v.src", "v.tgt")
    done = prepare(sources, targets, *options)
    assert done.returncode == 0, done.stderr
    note = "Normalisation by nmt_nfkc changes 0 source and 1 target lines of 2 in the valid text"
    assert (note in done.stdout) == (rule == "nmt_nfkc")
    corpus = PreparedCorpus.open(tmp_path / "corpus")
    vocabulary = corpus.target_vocabulary
    assert vocabulary.decode(vocabulary.encode("10m² no")) == ("10m2 no" if rule == "nmt_nfkc" else "10m² no")
    assert corpus.manifest.options.normalization == rule


def test_names_of_special_pieces_are_explained(prepare: Prepare) -> None:
    text = [*sentences(300, "the dog sees a cat"), *["<s> the dog </s>"] * 3]
    done = prepare(text, text, "--vocab-size", "17")
    assert done.returncode == 0, done.stderr
    assert "the source text holds <s>, </s>, the names of special pieces" in done.stderr


def test_a_foreign_model_is_warned_of(tmp_path: Path, prepare: Prepare, tiny_run: TinyRun) -> None:
    text = sentences(100, "the dog sees")
    foreign = sentences(100, "собака видит кота")
    model = str(tiny_run.corpus / "target.spm")
    done = prepare(text, foreign, "--source-model", model, "--target-model", model, "--max-ratio", "inf")
    assert done.returncode == 0, done.stderr
    assert "of the pieces of the target side are unknown" in done.stderr and f"--target-model {model}" in done.stderr
    assert "of the source side" not in done.stderr


def test_several_test_sets(tmp_path: Path, prepare: Prepare, tiny_run: TinyRun, commands: ForkedCommands) -> None:
    text = tiny_run.corpus.parent
    models = [f"--{side}-model={tiny_run.corpus / side}.spm" for side in ("source", "target")]
    tests = [("--test", str(text / f"{name}.en"), str(text / f"{name}.de")) for name in ("test", "valid")]
    lines = [(text / f"train.{language}").read_text().splitlines() for language in ("en", "de")]
    done = prepare(*lines, *models, *tests[0], *tests[1])
    assert done.returncode == 0 and "test2 pairs (as text)" in done.stdout, done.stderr
    corpus = PreparedCorpus.open(tmp_path / "corpus")
    assert corpus.raw("test2")[0] == (text / "valid.en").read_text().splitlines()
    command = ("evaluate", str(tiny_run.run_dir), "--data", "corpus", "--beam", "1", "--threads", "1", "--split")
    scored = commands(*command, "test2", cwd=tmp_path, timeout=PATIENCE_SECONDS)
    assert scored.returncode == 0 and "test2 text of corpus" in scored.stdout, scored.stderr
    (tiny_run.run_dir / "evaluation-test2.jsonl").unlink()
    refused = commands(*command, "test3", cwd=tmp_path, timeout=PATIENCE_SECONDS)
    check_refusal(refused.returncode, refused.stderr, ("no test3 text, but", "test2"), "once for each test set")
