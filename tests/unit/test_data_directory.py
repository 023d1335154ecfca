"""The directory of a corpus: replaced only when asked, whole or not there, and by one command at a time."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from corpus_text import NUM_PAIRS, content, options, sentence_pairs, write

from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.encode import Limits, encode_pairs
from hpcasync.data.prepare import prepare
from hpcasync.errors import UserError


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
    assert not psutil.wait_procs(children, timeout=240)[1]
    assert not (tmp_path / "out").exists()
    both: dict[str, Any] = {"source_model": model, "target_model": model}
    prepare(*texts, tmp_path / "out", options(**both))
    prepare(*texts, tmp_path / "clean", options(**both))
    assert content(tmp_path / "out") == content(tmp_path / "clean")


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
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
