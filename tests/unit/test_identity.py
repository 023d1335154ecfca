"""What is taken to be the same is compared by digest: vocabularies, corpus, parameters, how the model computes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from forked_commands import FinishedCommand, ForkedCommands
from tiny_run import NAMES, TinyRun

from hpcasync.config.schema import load_config
from hpcasync.data.manifest import read_manifest
from hpcasync.runs.files import write_snapshot
from hpcasync.runs.identity import LAYOUT_KEY, identity, identity_of_run

_TIMEOUT_SECONDS = 240


@pytest.fixture
def place(tmp_path: Path, tiny_run: TinyRun) -> Path:
    """A run with a snapshot as training writes it, its corpus and text."""
    from safetensors.numpy import load_file

    shutil.copytree(tiny_run.run_dir, tmp_path / "run")
    shutil.copytree(tiny_run.corpus, tmp_path / "corpus")
    for name in ("train.en", "train.de", "valid.en", "valid.de"):
        shutil.copyfile(tiny_run.corpus.parent / name, tmp_path / name)
    snapshot = tmp_path / "run" / "snapshots" / NAMES[-1]
    state = json.loads((snapshot / "state.json").read_text())
    arrays = load_file(snapshot / "parameters.safetensors")
    corpus_digest = read_manifest(tmp_path / "corpus").digest
    layout = {"corpus": corpus_digest, **identity_of_run(tmp_path / "run")}
    assert not write_snapshot(snapshot, arrays, {**state, LAYOUT_KEY: layout}).error
    return tmp_path


def refused(done: FinishedCommand, *parts: str) -> None:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


def test_two_vocabularies_of_one_size_share_no_vectors(commands: ForkedCommands, place: Path) -> None:
    texts = ("train.en", "train.de", "--valid", "valid.en", "valid.de", "--vocab-size", "50", "--model-type", "bpe")
    words = ("data", "prepare", *texts, "--separate", "--out", "apart", "--processes", "1")
    done = commands(*words, cwd=place, timeout=_TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stderr
    values = yaml.safe_load((place / "run" / "config.yaml").read_text())
    for architecture in ("transformer", "rnn"):
        values["model"] |= {"architecture": architecture}
        values["optimizer"] |= {"name": "auto"}
        (place / "q.yaml").write_text(yaml.safe_dump(values))
        done = commands("train", "q.yaml", "mode=sync", "data.path=apart", cwd=place, timeout=_TIMEOUT_SECONDS)
        refused(done, "model.tie=all needs one joint vocabulary", "apart has two", "set model.tie=target")


def test_offsets_and_text_that_have_changed(commands: ForkedCommands, place: Path) -> None:
    path = place / "corpus" / "train.target.offsets"
    content = bytearray(path.read_bytes())
    content[8] ^= 1  # the end of the first sentence
    path.write_bytes(content)
    settings = ("mode=async", "data.path=corpus", "validation.score=false")
    done = commands("simulate", "run/config.yaml", "--workers", "2", *settings, cwd=place, timeout=_TIMEOUT_SECONDS)
    refused(done, "the content of train.target.offsets has changed")
    text = place / "corpus" / "valid.target.txt"
    text.write_bytes(text.read_bytes().replace(b"Hund", b"Hand"))
    done = commands("evaluate", "run", "--data", "corpus", cwd=place, timeout=_TIMEOUT_SECONDS)
    refused(done, "the content of valid.target.txt has changed")


def test_vocabularies_and_parameters_that_have_been_exchanged(commands: ForkedCommands, place: Path) -> None:
    translate = ("translate", "run", "-i", "valid.en", "-o", "out")
    assert commands(*translate, cwd=place, timeout=_TIMEOUT_SECONDS).returncode == 0
    parameters = place / "run" / "snapshots" / NAMES[-1] / "parameters.safetensors"
    kept = parameters.read_bytes()
    shutil.copyfile(place / "run" / "snapshots" / NAMES[0] / "parameters.safetensors", parameters)
    refused(commands(*translate, cwd=place, timeout=_TIMEOUT_SECONDS), "is not what was written with its snapshot")
    parameters.write_bytes(kept)
    vocabulary = place / "run" / "source.spm"
    vocabulary.write_bytes(vocabulary.read_bytes() + b"\x9a\x06\x00")  # a field that SentencePiece passes over
    for words in (translate, ("evaluate", "run", "--data", "corpus")):
        done = commands(*words, cwd=place, timeout=_TIMEOUT_SECONDS)
        refused(done, "was trained with another source vocabulary than run has now")


def test_averages_are_of_one_model(commands: ForkedCommands, place: Path, tiny_run: TinyRun) -> None:
    shutil.copytree(tiny_run.run_dir, place / "other")
    path = place / "other" / "config.yaml"
    words = ("translate", "run", "-i", "valid.en", "-o", "out", "--average", "other")
    assert commands(*words, cwd=place, timeout=_TIMEOUT_SECONDS).returncode == 0
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "model": {**values["model"], "heads": 4}}))
    done = commands(*words, cwd=place, timeout=_TIMEOUT_SECONDS)
    refused(done, "another architecture than run has now (transformer, 4 heads, norm pre, there transformer, 2 heads")


def test_a_corpus_that_was_prepared_anew_is_said(commands: ForkedCommands, place: Path) -> None:
    path = place / "corpus" / "manifest.json"
    path.write_text(path.read_text().replace('"source_language": null', '"source_language": "en"'))
    done = commands("evaluate", "run", "--data", "corpus", cwd=place, timeout=_TIMEOUT_SECONDS)
    assert done.returncode == 0 and "corpus is not the corpus as the run was trained on it" in done.stderr, done.stderr


def test_identity(tiny_run: TinyRun) -> None:
    model = load_config(tiny_run.run_dir / "config.yaml").model
    digests = {"source": "a" * 64, "target": "b" * 64}
    found = identity(model, digests)
    assert found == {
        "architecture": "transformer, 2 heads, norm pre",
        "source vocabulary": "a" * 16,
        "target vocabulary": "b" * 16,
    }
    assert identity(model.model_copy(update={"dropout": 0.3}), digests) == found, "it can be set anew"
