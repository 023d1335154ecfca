"""`hpcasync translate`: order, formats, and errors that name the line."""

import gzip
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_run import NAMES, TinyRun, translation_of

from hpcasync.cli.translate import parse_average, translate
from hpcasync.errors import UserError
from hpcasync.nmt.line_streams import format_translation
from hpcasync.nmt.search import Hypothesis, SearchSettings

SENTENCES = ["the dog sees the old cat", "the cat", "", "the old dog and the cat likes the dog"]
TRANSLATIONS = [translation_of(sentence) for sentence in SENTENCES]


def run(*arguments: object, stdin: bytes | str = "") -> Result:
    return CliRunner().invoke(translate, [str(argument) for argument in arguments], input=stdin)


def lines_of(result: Result) -> list[str]:
    if result.exception:
        raise result.exception
    return result.stdout.splitlines()


def error_of(result: Result) -> str:
    assert isinstance(result.exception, UserError)
    return str(result.exception)


def test_standard_input_to_standard_output(tiny_run: TinyRun) -> None:
    stdin = "\n".join(SENTENCES)  # no line end at the end
    for arguments in ([], ["--greedy"], ["--beam", 3], ["--read-ahead", 1], ["--batch-tokens", 1]):
        assert lines_of(run(tiny_run.run_dir, "--device", "cpu", *arguments, stdin=stdin)) == TRANSLATIONS
    assert lines_of(run(tiny_run.run_dir, stdin="")) == []


def test_files_and_line_ends(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbf" + "".join(f"{s}\r\n" for s in SENTENCES).encode())
    (tmp_path / "packed.gz").write_bytes(gzip.compress("".join(f"{s}\n" for s in SENTENCES).encode()))
    for name in ("windows", "packed.gz"):
        result = run(tiny_run.run_dir, "-i", tmp_path / name, "-o", tmp_path / "out")
        assert lines_of(result) == []
        assert (tmp_path / "out").read_text() == "".join(f"{line}\n" for line in TRANSLATIONS)


def test_nbest_and_scores(tiny_run: TinyRun) -> None:
    rows = [line.split(" ||| ") for line in lines_of(run(tiny_run.run_dir, "--nbest", 3, stdin="\n".join(SENTENCES)))]
    assert [int(row[0]) for row in rows] == [0, 0, 0, 1, 1, 1, 2, 3, 3, 3]
    assert [rows[0][1], rows[3][1], rows[7][1]] == [TRANSLATIONS[0], TRANSLATIONS[1], TRANSLATIONS[3]]
    assert rows[6][1:] == ["", "0.000000"]
    scores = [float(row[2]) for row in rows[:3]]
    assert scores == sorted(scores, reverse=True) and -0.1 < scores[0] < 0
    (line,) = lines_of(run(tiny_run.run_dir, "--scores", stdin=SENTENCES[0]))
    text, score = line.split("\t")
    assert text == TRANSLATIONS[0] and float(score) == pytest.approx(scores[0], abs=1e-5)


def test_averaging(tiny_run: TinyRun) -> None:
    early = tiny_run.run_dir / "snapshots" / NAMES[0]
    last = tiny_run.run_dir / "snapshots" / NAMES[2]
    assert lines_of(run(last, "--average", 1, stdin="the cat")) == ["der Kater"]
    by_number = lines_of(run(tiny_run.run_dir, "--average", 3, "--scores", stdin="the cat"))
    by_path = run(
        early, "--average", tiny_run.run_dir / "snapshots" / NAMES[1], "--average", last, "--scores", stdin="the cat"
    )
    assert lines_of(by_path) == by_number
    assert parse_average(["5"]) == (5, []) and parse_average(["a", "b"]) == (1, [Path("a"), Path("b")])
    with pytest.raises(UserError, match=r"one number or any number of paths, not 5, a"):
        parse_average(["5", "a"])


def test_invalid_utf8_names_the_line(tiny_run: TinyRun, tmp_path: Path) -> None:
    content = b"the cat\nthe \xff dog\n"
    (tmp_path / "text").write_bytes(content)
    message = "line 2: invalid UTF-8 (byte 5 is 0xff)"
    assert f"{tmp_path / 'text'}, {message}" in error_of(run(tiny_run.run_dir, "-i", tmp_path / "text"))
    result = run(tiny_run.run_dir, "--read-ahead", 1, stdin=content)
    assert f"standard input, {message}" in error_of(result)
    assert result.stdout == "der Kater\n"


def test_files_that_cannot_be(tiny_run: TinyRun, tmp_path: Path) -> None:
    text, out = tmp_path / "text", tmp_path / "out"
    text.write_text("the cat\n")
    out.write_text("precious\n")
    assert "there is no input file" in error_of(run(tiny_run.run_dir, "-i", tmp_path / "absent", "-o", out))
    assert "input and output at once" in error_of(run(tiny_run.run_dir, "-i", text, "-o", text))
    assert "does not exist: give a run directory" in error_of(run(tmp_path / "model", "-i", text, "-o", out))
    assert "cannot write" in error_of(run(tiny_run.run_dir, "-i", text, "-o", tmp_path / "no" / "where"))
    assert (text.read_text(), out.read_text()) == ("the cat\n", "precious\n")


def test_options_that_contradict_each_other(tiny_run: TinyRun) -> None:
    assert "--greedy is --beam 1, but --beam 4 is given" in run(tiny_run.run_dir, "--greedy", "--beam", 4).output
    assert "nbest 6 is more than beam 5" in error_of(run(tiny_run.run_dir, "--nbest", 6))


def test_a_translation_stays_on_its_line() -> None:
    hypothesis = Hypothesis("a\nb\r\nc", -1.0, -3.0, (4, 5, 3))
    assert format_translation(0, [hypothesis], "best") == "a b  c\n"
    assert format_translation(7, [hypothesis], "nbest") == "7 ||| a b  c ||| -1.000000\n"


def test_defaults_are_those_of_the_search() -> None:
    defaults = {parameter.name: parameter.default for parameter in translate.params}
    for name in ("beam", "nbest", "length_penalty", "max_length_factor", "batch_tokens"):
        assert defaults[name] == inspect.signature(SearchSettings).parameters[name].default


def test_a_reader_that_leaves_is_no_error(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("the old dog and the cat likes the dog\n" * 3000)
    arguments = ["translate", str(tiny_run.run_dir), "-i", str(tmp_path / "text"), "--greedy"]
    command = [sys.executable, "-m", "hpcasync", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"der alte Hund und der Kater mag der Hund\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(240) == 1
