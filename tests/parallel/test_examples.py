"""The programs in examples/: as good as their plain versions, from which they differ in six lines at most."""

import difflib
import io
import json
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from runners import MpiRunner

EXAMPLES = Path(__file__).parents[2] / "examples"
# Seconds of one core each.
SIZES = {
    "digits": ("--epochs", "6"),
    "characters": ("--parts", "16", "--epochs", "2"),
    "trainer": ("--epochs", "3"),
}


@pytest.fixture(autouse=True)
def _transformers(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["name"] == "trainer":
        pytest.importorskip("accelerate", reason="Hugging Face's Trainer needs transformers and accelerate")


def code_lines(path: Path) -> list[str]:
    """Without docstrings, comments, blanks and indentation."""
    text = re.sub(r'"""(.|\n)*?"""', "", path.read_text())
    return [stripped for line in text.splitlines() if (stripped := line.strip()) and not stripped.startswith("#")]


@pytest.mark.parametrize("name", SIZES)
def test_an_example_differs_from_the_plain_program_in_few_lines(name: str) -> None:
    plain, joined = code_lines(EXAMPLES / f"{name}_plain.py"), code_lines(EXAMPLES / f"{name}.py")
    changed = [line for line in difflib.ndiff(plain, joined) if line[0] == "+"]
    assert len(changed) <= 6, changed


def score(said: str) -> float:
    found = re.search(r"accuracy ([\d.]+)|([\d.]+) bits per byte", said)
    assert found is not None, said
    return float(found[1] or found[2])


def plain_score(name: str, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(sys, "argv", [name, *SIZES[name]])
    said = io.StringIO()
    with redirect_stdout(said):
        runpy.run_path(str(EXAMPLES / f"{name}_plain.py"), run_name="__main__")
    return score(said.getvalue())


@pytest.mark.parametrize(("name", "margin"), [("digits", 0.04), ("characters", 0.02), ("trainer", 0.1)])
def test_an_example_on_one_rank_is_as_good_as_the_plain_program(
    name: str, margin: float, mpirun: MpiRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = plain_score(name, monkeypatch)
    job = mpirun.program(1, EXAMPLES / f"{name}.py", *SIZES[name], "--run", tmp_path / "run", timeout=120)
    assert score(job.stdout) == pytest.approx(expected, abs=margin)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("digits", 0.85, 1.0), ("characters", 2.0, 5.5), ("trainer", 0.85, 1.0)]
)
def test_an_example_on_several_ranks(name: str, least: float, most: float, mpirun: MpiRunner, tmp_path: Path) -> None:
    job = mpirun.program(3, EXAMPLES / f"{name}.py", *SIZES[name], "--run", tmp_path / "run", timeout=120)
    assert least <= score(job.stdout) <= most
    newest = max((tmp_path / "run" / "checkpoints").glob("u*"))
    tickets = json.loads((newest / "state.json").read_text())["tickets"]
    batches = sum(1 for line in job.stdout.splitlines() if "batches per epoch" in line)
    assert batches == 1 and tickets["above"] == [] and tickets["low"] > 0
