"""`hpcasync evaluate`: files, comparisons, runs, text and JSON."""

import gzip
import inspect
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_run import NAMES, TinyRun

from hpcasync.cli.evaluate import evaluate
from hpcasync.errors import UserError
from hpcasync.nmt.evaluation import EvaluationSettings
from hpcasync.nmt.scoring import corpus_score

REFERENCE = ["The cat sat on the mat.", "It was a fine day in May, was it not?", "Nobody came."]
OTHER = ["The cat was on the mat.", "It was a fine day in June, wasn't it?", "No one came."]
GOOD = ["The cat sat on a mat.", "It was a fine day in June, was it not?", "Nobody came."]
BAD = ["A cat on a mat.", "Fine day it was.", "Somebody came."]


def run(*arguments: object, stdin: str = "") -> Result:
    return CliRunner().invoke(evaluate, [str(argument) for argument in arguments], input=stdin)


def lines_of(result: Result) -> list[str]:
    if result.exception:
        raise result.exception
    return result.stdout.splitlines()


def json_of(result: Result) -> object:
    return json.loads("\n".join(lines_of(result)))


def error_of(result: Result) -> str:
    assert isinstance(result.exception, UserError)
    return str(result.exception)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, lines in {"reference": REFERENCE, "other": OTHER, "good": GOOD, "bad": BAD}.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    return tmp_path


def test_scores_of_a_file(files: Path) -> None:
    lines = lines_of(run(files / "good", files / "reference"))
    assert [line.split()[0] for line in lines] == ["BLEU", "precisions", "chrF2", "TER"]
    bleu = corpus_score("bleu", GOOD, [REFERENCE])
    assert lines[0].split() == ["BLEU", f"{bleu.value:.2f}", bleu.signature]
    content = json_of(run(files / "good", files / "reference", files / "other", "--json", "--metrics", "bleu,ter"))
    expected = [corpus_score(name, GOOD, [REFERENCE, OTHER]) for name in ("bleu", "ter")]
    assert content == {"system": str(files / "good"), "scores": [vars(score) for score in expected]}


def test_packed_files_and_standard_input(files: Path) -> None:
    plain = lines_of(run(files / "good", files / "reference"))
    (files / "packed.gz").write_bytes(gzip.compress((files / "good").read_bytes()))
    assert lines_of(run(files / "packed.gz", files / "reference")) == plain
    assert lines_of(run("-", files / "reference", stdin=(files / "good").read_text())) == plain
    assert "once only" in error_of(run("-", "-"))


def test_comparison(files: Path) -> None:
    arguments = [files / "good", files / "reference", "--system", files / "bad", "--samples", 50]
    lines = lines_of(run(*arguments))
    assert lines[0].startswith("BLEU  nrefs:1|bs:50|seed:12345|")
    assert lines[1].split()[0] == str(files / "good") and lines[1].endswith("baseline")
    assert lines[2].split()[0] == str(files / "bad") and "p = 0." in lines[2]
    assert len(lines) == 10
    content = json_of(run(*arguments, "--json"))
    assert isinstance(content, list)
    assert [system["system"] for system in content] == [str(files / "good"), str(files / "bad")]
    assert content[0]["scores"][0]["p_value"] is None and 0 < content[1]["scores"][0]["p_value"] <= 1
    assert content[1]["scores"][0]["value"] == pytest.approx(corpus_score("bleu", BAD, [REFERENCE]).value)
    assert "given twice" in error_of(run(files / "good", files / "reference", "--system", files / "good"))


def test_files_that_do_not_fit(files: Path) -> None:
    (files / "short").write_text("one line\n")
    message = error_of(run(files / "short", files / "reference"))
    assert f"{files / 'short'} has 1 lines but the reference has 3" in message
    message = error_of(run(files / "good", files / "reference", files / "short"))
    assert f"{files / 'short'} has 1 lines but the reference has 3" in message
    assert "does not exist: give a translation and its references" in error_of(run(files / "absent"))
    assert "cannot read" in error_of(run(files / "absent", files / "reference"))
    assert "no score 'bleurt'" in error_of(run(files / "good", files / "reference", "--metrics", "bleu,bleurt"))
    (files / "latin").write_bytes(b"caf\xe9\n")
    assert "latin, line 1: invalid UTF-8 (byte 4 is 0xe9)" in error_of(run(files / "latin", files / "reference"))


def test_options_of_the_other_kind(files: Path, tiny_run: TinyRun) -> None:
    assert "--all is for a run directory" in run(files / "good", files / "reference", "--all").output
    assert "--system is for files" in run(tiny_run.run_dir, "--system", files / "good").output
    assert "give one run directory" in run(tiny_run.run_dir, files / "good").output


def test_the_best_snapshot_of_a_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(tiny_run.run_dir, tmp_path / "run"))
    lines = lines_of(run(run_dir, "--device", "cpu"))
    (line,) = [line for line in lines if line.startswith("u0")]
    assert line.split()[:2] == [NAMES[2], "250"] and line.split()[-4:] == ["100.00", "100.00", "1.000", "1.000"]
    assert any(line.startswith("BLEU  nrefs:1|case:mixed|") for line in lines)
    content = json_of(run(run_dir / "snapshots" / NAMES[0], "--json", "--split", "test", "--max-sentences", 4))
    assert isinstance(content, list) and content[0]["snapshot"] == NAMES[0] and content[0]["num_sentences"] == 4
    assert len((run_dir / "evaluation-test.jsonl").read_text().splitlines()) == 1


def test_all_snapshots_of_a_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(tiny_run.run_dir, tmp_path / "run"))
    rows = [line.split() for line in lines_of(run(run_dir, "--all")) if line.startswith("u0")]
    assert [row[0] for row in rows] == list(NAMES)
    assert [row[3] for row in rows] == ["0.5", "6.0", "25.0"]
    bleu = [float(row[6]) for row in rows]
    assert bleu[0] < bleu[1] < bleu[2]
    content = json_of(run(run_dir, "--all", "--json"))
    assert [record["snapshot"] for record in content] == list(NAMES)  # type: ignore[attr-defined]
    assert len((run_dir / "evaluation-valid.jsonl").read_text().splitlines()) == 3


def test_runs_that_cannot_be_scored(tiny_run: TinyRun, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(tiny_run.run_dir, tmp_path / "run"))
    assert "--all needs a run directory" in error_of(run(run_dir / "snapshots" / NAMES[0], "--all"))
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny_run.corpus), str(tmp_path / "moved")))
    assert "moved, the corpus that " in error_of(run(run_dir)) and "--data DIR" in error_of(run(run_dir))
    assert lines_of(run(run_dir, "--data", tiny_run.corpus))
    shutil.rmtree(run_dir / "snapshots")
    (run_dir / "snapshots").mkdir()
    assert "has no snapshots yet" in error_of(run(run_dir, "--all", "--data", tiny_run.corpus))


def test_defaults_are_those_of_the_evaluation() -> None:
    defaults = {parameter.name: parameter.default for parameter in evaluate.params}
    for name in ("split", "beam", "length_penalty", "max_sentences", "batch_tokens"):
        assert defaults[name] == inspect.signature(EvaluationSettings).parameters[name].default
