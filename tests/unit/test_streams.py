"""A stream is read as a file is: byte-order marks, gzip, line ends; - is standard input or output."""

import gzip
import os
import threading
from pathlib import Path

import pytest
from bad_input import PATIENCE_SECONDS, check_refusal
from forked_commands import ForkedCommands
from tiny_run import TinyRun

SENTENCE, TRANSLATION = b"the old dog sees the cat", "der alte Hund sieht der Kater\n"
FORMS = {
    "byte-order mark": b"\xef\xbb\xbf" + SENTENCE + b"\n",
    "gzip": gzip.compress(SENTENCE + b"\n"),
    "gzip with a mark and returns": gzip.compress(b"\xef\xbb\xbf" + SENTENCE + b"\r\n"),
    "returns": SENTENCE + b"\r\r\n",
    "no end": SENTENCE,
}


@pytest.mark.parametrize("form", FORMS)
def test_standard_input_is_read_as_a_file_is(
    form: str, tmp_path: Path, tiny_run: TinyRun, commands: ForkedCommands
) -> None:
    options = ("translate", tiny_run.run_dir, "--threads", "1", "--beam", "1")
    done = commands(*options, "-i", "-", "-o", "-", cwd=tmp_path, stdin=FORMS[form], timeout=PATIENCE_SECONDS)
    assert done.stdout == TRANSLATION, done.stderr


def test_a_pipe_is_read_as_a_file_is(tmp_path: Path, tiny_run: TinyRun, commands: ForkedCommands) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(FORMS["gzip with a mark and returns"],))
    writer.start()
    options = ("translate", tiny_run.run_dir, "--threads", "1", "--beam", "1", "-i", "pipe")
    done = commands(*options, cwd=tmp_path, timeout=PATIENCE_SECONDS)
    writer.join()
    assert done.stdout == TRANSLATION, done.stderr


def test_damaged_gzip_on_standard_input(tmp_path: Path, tiny_run: TinyRun, commands: ForkedCommands) -> None:
    damaged = gzip.compress(SENTENCE * 100)[:-9]
    done = commands("translate", tiny_run.run_dir, cwd=tmp_path, stdin=damaged, timeout=PATIENCE_SECONDS)
    check_refusal(done.returncode, done.stderr, ("standard input is a damaged or truncated gzip",), "compress it again")


def test_prepare_takes_standard_input_and_pipes(tmp_path: Path, tiny_run: TinyRun, commands: ForkedCommands) -> None:
    text = tiny_run.corpus.parent
    models = [f"--{side}-model={tiny_run.corpus / side}.spm" for side in ("source", "target")]
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=((text / "train.de").read_bytes(),))
    writer.start()
    options = ("data", "prepare", "-", "pipe", "--out", "corpus", "--processes", "1", *models)
    packed = gzip.compress(b"\xef\xbb\xbf" + (text / "train.en").read_bytes())
    done = commands(*options, cwd=tmp_path, stdin=packed, timeout=PATIENCE_SECONDS)
    writer.join()
    assert done.returncode == 0, done.stderr
    names = ("train.source.tokens", "train.target.tokens")
    assert all((tmp_path / "corpus" / n).read_bytes() == (tiny_run.corpus / n).read_bytes() for n in names)
    twice = commands("data", "prepare", "-", "-", "--out", "new", cwd=tmp_path, timeout=PATIENCE_SECONDS)
    check_refusal(twice.returncode, twice.stderr, ("standard input (-)",), "once only")
