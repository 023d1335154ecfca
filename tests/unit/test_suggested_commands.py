"""What messages suggest can be pasted into a shell, whatever is in the names of files and directories."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.cli.data import prepare as prepare_command
from hpcasync.cli.evaluate import evaluate
from hpcasync.cli.launch import split_arguments
from hpcasync.cli.train import train
from hpcasync.command_line import as_argument, command_line, own_command, pip_install, this_command_on
from hpcasync.config.schema import Config, load_config
from hpcasync.data.fetch.corpus import FetchedCorpus
from hpcasync.data.manifest import Manifest
from hpcasync.data.prepare import PrepareOptions, prepare
from hpcasync.data.subwords import SubwordOptions
from hpcasync.data.summary import training_command
from hpcasync.launch.restarts import run_with_restarts
from hpcasync.launch.supervision import SupervisedJob

NASTY = ["my corpus", "it's", 'say "hi"', "$HOME", "a`b`", "x;y&z|", "*?[1]", "#1", "~", "~root", "-x", "--out", "'q'",
         '"q"', "a=b", "new\nline", "back\\slash", "!!", "{a,b}", "Größe", "null", " x ", "a: b"]  # fmt: skip
names = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20),
).filter(lambda name: name not in (".", "..", ""))
examples = settings(max_examples=60)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Of any corpus."""
    directory = tmp_path_factory.mktemp("text")
    for side in ("a", "b"):
        (directory / side).write_text("one two three four\nfive six seven\n" * 20)
    return prepare(
        directory / "a", directory / "b", directory / "c", PrepareOptions(subwords=SubwordOptions(vocab_size=22))
    )


def own_words(line: str) -> list[str]:
    """The arguments of `hpcasync` in a line."""
    words = shlex.split(line)
    return words[words.index("hpcasync") + 1 :]


def parsed(command: click.Command, words: list[str]) -> dict[str, Any]:
    """What a command makes of its arguments."""
    return command.make_context("x", list(words)).params


def config_of(words: list[str]) -> Config:
    """Of `launch … -- train CONFIG …`."""
    own, options, (name, *rest) = split_arguments(words[1:])
    assert (words[0], own[0], options, name) == ("launch", "-n", [], "train")
    values = parsed(train, rest)
    return load_config(values["config"], values["overrides"])


def same(path: Path, expected: str) -> bool:
    return path.absolute() == Path(expected).absolute()


@examples
@given(name=names)
def test_training_on_a_prepared_corpus(manifest: Manifest, name: str) -> None:
    assert same(config_of(own_words(training_command(manifest, Path(name)))).data.path, name)


def test_a_corpus_with_two_vocabularies_ties_what_they_allow(manifest: Manifest) -> None:
    assert config_of(own_words(training_command(manifest, Path("c")))).model.tie == "all"
    apart = manifest.model_copy(update={"joint": False})
    assert config_of(own_words(training_command(apart, Path("c")))).model.tie == "target"


@examples
@given(name=names)
def test_preparing_what_was_fetched(name: str) -> None:
    source, target = (Path(name) / side for side in ("train.en", "train.de"))
    corpus = FetchedCorpus("en", "de", (source, target), (source, target), (source, target), 80)
    words = own_words(corpus.prepare_command(Path(name) / "prepared"))
    assert words[:2] == ["data", "prepare"]
    values = parsed(prepare_command, words[2:])
    files = [values["source"], values["target"], *values["valid"], *values["tests"][0]]
    assert all(same(file, f"{name}/train.{side}") for file, side in zip(files, ["en", "de"] * 3, strict=True))
    assert same(values["directory"], f"{name}/prepared") and values["vocab_size"] == 80


@examples
@given(name=names)
def test_scoring_snapshots_later(name: str) -> None:
    command, *words = own_words(own_command("evaluate", Path(name), "--all"))
    values = parsed(evaluate, words)
    assert command == "evaluate" and values["is_all"] and same(Path(values["paths"][0]), name)


@examples
@given(words=st.lists(names, max_size=4))
def test_going_on_after_an_interruption(words: list[str]) -> None:
    """What was typed comes again, word for word."""
    said: list[str] = []
    interrupted = SupervisedJob(130, (2,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpcasync.launch.restarts._say", said.append)
        assert run_with_restarts(lambda _: interrupted, ["train", *words], None, 0, ["launch", "-n", "3", "--"]) == 130
    assert own_words(said[0].partition("again with: ")[2]) == ["launch", "-n", "3", "--", "train", *words]


@examples
@given(name=names)
def test_the_same_program_on_more_ranks(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for argv in (["/usr/bin/hpcasync", "train", name], ["/x/hpcasync/__main__.py", "train", name]):
            patch.setattr(sys, "argv", argv)
            assert own_words(this_command_on(4)) == ["launch", "-n", "4", "--", "train", name]
        patch.setattr(sys, "argv", [name, "train"])
        words = own_words(this_command_on(4))
        assert words[:5] == ["launch", "-n", "4", "--", "python"] and same(Path(words[5]), name)


@pytest.mark.parametrize("name", NASTY)
def test_a_shell_reads_the_words_that_were_meant(name: str) -> None:
    printed = command_line("printf", r"%s\0", name, Path(name), f"data.path={as_argument(Path(name))}")
    done = subprocess.run(["bash", "-c", printed], capture_output=True, check=True)
    text, path, override, _ = done.stdout.decode().split("\0")
    assert text == name and same(Path(path), name) and same(Path(override.partition("=")[2]), name)


def test_packages_go_into_the_environment_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my envs/a/bin/python")
    assert shlex.split(pip_install("hpcasync[ja]")) == [sys.executable, "-m", "pip", "install", "hpcasync[ja]"]


@pytest.mark.parametrize("found", ["/somewhere/hpcasync", None])
def test_the_name_of_the_program_is_one_that_the_shell_finds(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: found)
    program = ["hpcasync"] if found else [sys.executable, "-m", "hpcasync"]
    assert shlex.split(own_command("doctor")) == [*program, "doctor"]
