"""The programs in examples/: as good as their plain versions, from which they differ in six lines at most."""

import difflib
import importlib.util
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from forked_ranks import ForkedRanks
from runners import RANK_ENVIRONMENT, MpiRunner, launch_line
from tiny_training import TinyCorpus

EXAMPLES = Path(__file__).parents[2] / "examples"
# Seconds of one core each.
EPOCHS = {"digits": 6, "characters": 2, "trainer": 3, "stream": 3, "translation": 6}
SIZES = {"characters": ("--parts", "16"), "stream": ("--parts", "12"), "translation": ("--batch-tokens", "150")}
# Of accuracies, bits per byte, nats per token.
MARGINS = {"digits": 0.04, "characters": 0.02, "trainer": 0.1, "stream": 0.1, "translation": 0.1}
# The better ends are out of reach of those that were stopped late, too.
BOUNDS = {
    "digits": (0.85, 1.0),
    "characters": (1.0, 5.5),
    "trainer": (0.85, 1.0),
    "stream": (1.0, 5.5),
    "translation": (0.01, 3.5),
}
STREAM_BATCH = 16
# What examples import takes longer than what they do.
IMPORTED = ("sklearn.datasets", "transformers.trainer", "transformers.models.bert.modeling_bert")


@pytest.fixture(autouse=True)
def _transformers(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["name"] == "trainer":
        pytest.importorskip("accelerate", reason="Hugging Face's Trainer needs transformers and accelerate")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, forked: ForkedRanks | None) -> Iterator[ForkedRanks | None]:
    """What ranks are forks of that have what examples import."""
    if forked is None:
        yield None
        return
    present = [module for module in IMPORTED if importlib.util.find_spec(module.partition(".")[0])]
    environment = {**os.environ, **RANK_ENVIRONMENT}
    imported = ForkedRanks(tmp_path_factory.mktemp("ranks"), environment, modules=present)
    yield imported
    imported.close()


@pytest.fixture(scope="module")
def run_ranks(mpirun: MpiRunner, imported: ForkedRanks | None) -> MpiRunner:
    """Run MPI jobs with such ranks."""
    return MpiRunner(mpirun.launcher, forked=imported)


def code_lines(path: Path) -> list[str]:
    """Without docstrings, comments, blanks and indentation."""
    text = re.sub(r'"""(.|\n)*?"""', "", path.read_text())
    return [stripped for line in text.splitlines() if (stripped := line.strip()) and not stripped.startswith("#")]


def options_of(name: str, corpus: TinyCorpus, epochs: int = 0) -> list[str]:
    first = [str(corpus.path)] if name == "translation" else []
    return [*first, "--epochs", str(epochs or EPOCHS[name]), *SIZES.get(name, ())]


@pytest.mark.parametrize("name", EPOCHS)
def test_an_example_differs_from_the_plain_program_in_few_lines(name: str) -> None:
    plain, joined = code_lines(EXAMPLES / f"{name}_plain.py"), code_lines(EXAMPLES / f"{name}.py")
    changed = [line for line in difflib.ndiff(plain, joined) if line[0] == "+"]
    assert len(changed) <= 6, changed


def score(said: str) -> float:
    found = re.search(r"accuracy ([\d.]+)|([\d.]+) (bits per byte|nats per token)", said)
    assert found is not None, said
    return float(found[1] or found[2])


@pytest.mark.parametrize("name", EPOCHS)
def test_an_example_on_one_rank_is_as_good_as_the_plain_program(
    name: str, run_ranks: MpiRunner, tiny_corpus: TinyCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = options_of(name, tiny_corpus)
    monkeypatch.setattr(sys, "argv", [name, *options])
    said = io.StringIO()
    with redirect_stdout(said):
        runpy.run_path(str(EXAMPLES / f"{name}_plain.py"), run_name="__main__")
    job = run_ranks.program(1, EXAMPLES / f"{name}.py", *options, "--run", tmp_path / "run")
    assert score(job.stdout) == pytest.approx(score(said.getvalue()), abs=MARGINS[name])


def state_of(run_dir: Path) -> dict[str, dict[str, object]]:
    newest = max(path for path in (run_dir / "checkpoints").glob("u*/state.json") if ".partial" not in str(path))
    state: dict[str, dict[str, object]] = json.loads(newest.read_text())
    return state


def batches_per_epoch(name: str, said: str) -> int:
    if name == "stream":
        program = runpy.run_path(str(EXAMPLES / "stream.py"))
        train, _ = program["corpus"](int(SIZES["stream"][1]))
        return -(-sum(1 for _ in program["Pieces"](train)) // STREAM_BATCH)
    found = re.search(r"([\d,]+) batches per epoch", said)
    assert found is not None, said
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("name", EPOCHS)
def test_an_example_that_is_stopped_goes_on_with_other_ranks(
    name: str, run_ranks: MpiRunner, imported: ForkedRanks | None, tiny_corpus: TinyCorpus, tmp_path: Path
) -> None:
    """And is as good as it should be; every batch is trained on once an epoch."""
    run_dir, program = tmp_path / "run", EXAMPLES / f"{name}.py"
    command = launch_line(imported, 2, program, *options_of(name, tiny_corpus, epochs=1000), "--run", run_dir)
    environment = {**os.environ, **RANK_ENVIRONMENT}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as job:
        records = run_dir / "metrics.jsonl"
        while job.poll() is None and not (records.exists() and '"update"' in records.read_text()):
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)
        said, _ = job.communicate()
    assert job.returncode == 85, said
    num_batches = batches_per_epoch(name, said)
    low = state_of(run_dir)["tickets"]["low"]
    assert isinstance(low, int)
    epochs = low // num_batches + EPOCHS[name]
    second = run_ranks.program(3, program, *options_of(name, tiny_corpus, epochs), "--run", run_dir, timeout=240)
    assert "resuming from" in second.stdout
    state = state_of(run_dir)
    assert state["tickets"] == {"low": epochs * num_batches, "above": []}
    assert state["counters"]["num_batches"] == epochs * num_batches
    least, most = BOUNDS[name]
    assert least <= score(second.stdout) <= most
