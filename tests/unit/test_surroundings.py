"""Commands where the environment lacks something: streams, a home, a UTF-8 locale, a directory to write."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from forked_commands import ForkedCommands
from tiny_run import TinyRun, translation_of

_TIMEOUT_SECONDS = 240
SENTENCE = "the old dog sees the cat"


def shell(line: str, cwd: Path, **environment: str | None) -> "subprocess.CompletedProcess[str]":
    """Run a line of shell with `hpcasync` in it, in an environment with changes; None unsets."""
    line = line.replace("hpcasync", f"{shlex.quote(sys.executable)} -m hpcasync", 1)
    values = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, env=values, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
    )


@pytest.fixture
def place(tmp_path: Path, tiny_run: TinyRun) -> Path:
    """A directory with a run and a sentence."""
    shutil.copytree(tiny_run.run_dir, tmp_path / "run")
    (tmp_path / "f").write_text(f"{SENTENCE}\n")
    return tmp_path


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_get_into_files(place: Path, closed: str) -> None:
    done = shell(f"hpcasync translate run -i f -o g {closed}", place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (place / "g").read_text() == f"{translation_of(SENTENCE)}\n"


def test_what_needs_a_closed_stream_says_so(place: Path) -> None:
    no_output = shell("hpcasync translate run -i f >&-", place)
    assert no_output.returncode == 2 and "cannot write standard output: Bad file descriptor" in no_output.stderr
    no_input = shell("hpcasync translate run <&-", place)
    assert no_input.returncode == 2 and "cannot read standard input: Bad file" in no_input.stderr
    for done in (no_output, no_input):
        assert done.stderr.count("hpcasync: error") == 1 and "Traceback" not in done.stderr


def test_no_home_and_a_locale_without_utf8(place: Path) -> None:
    (place / "f").write_text("the cat sees é\n")
    lacking = {
        "HOME": None,
        "USER": None,
        "LOGNAME": None,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = shell("hpcasync translate run -i f -o g", place, **lacking, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert (place / "g").read_text(encoding="utf-8").startswith("der Kater sieht")
    config = (place / "run" / "config.yaml").read_text()
    (place / "é.yaml").write_text("# größer\n" + config, encoding="utf-8")
    virtual = shell("hpcasync simulate é.yaml --no-gradients --workers 2 name=é mode=async", place, **lacking)
    assert virtual.returncode == 0, virtual.stderr


def test_scores_that_cannot_be_kept_are_shown(place: Path, tiny_run: TinyRun) -> None:
    (place / "run" / "evaluation-valid.jsonl").mkdir()  # in the way, as a directory that may not be written is
    done = shell(f"hpcasync evaluate run --data {tiny_run.corpus}", place)
    assert done.returncode == 0, done.stderr
    assert "u00000250" in done.stdout and "BLEU" in done.stdout
    assert "the scores are not kept: cannot write run/evaluation-valid.jsonl" in done.stderr


def test_training_goes_on_when_nobody_reads_its_lines(place: Path) -> None:
    settings = "mode=async validation.score=false stop.updates=6 logging.every=1 logging.tensorboard=false"
    for number, sink in enumerate(("| head -1", ">&-", ">/dev/full"), start=1):
        done = shell(f"hpcasync simulate run/config.yaml --workers 2 name=r{number} {settings} {sink}", place)
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
        summary = next((place / "runs").glob(f"r{number}-*")) / "summary.json"
        assert '"num_updates": 6' in summary.read_text()


@pytest.mark.parametrize(
    ("path", "said"),
    [("x" * 300, "too long"), ("loop/x", "symbolic links"), ("f/run", "Not a directory"), ("/dev/null", "")],
    ids=["long", "loop", "below a file", "a device"],
)
def test_no_path_ends_a_command_with_a_traceback(commands: ForkedCommands, place: Path, path: str, said: str) -> None:
    (place / "loop").symlink_to("loop")
    lines = ["train {}", "simulate {}", "translate {}", "translate run -i {}", "evaluate {}", "evaluate f {}"]
    lines += ["evaluate run --data {}", "report {}", "experiment {}", "data check {}", "data prepare {} {} --out x"]
    lines += ["translate run -i f --average {}", "train run/config.yaml mode=sync data.path={}", "slurm render {}"]
    lines += ["simulate run/config.yaml --cluster {}", "simulate run/config.yaml --fit {}"]
    for line in lines:
        words = line.format(path, path).split()
        done = commands(*words, cwd=place, timeout=_TIMEOUT_SECONDS)
        assert "Traceback" not in done.stderr and (done.returncode == 2 or path == "/dev/null"), (line, done.stderr)
        if line == lines[0]:
            assert said in done.stderr, (line, done.stderr)


VARIABLES = [
    {"SACREBLEU_SEED": "abc"},
    {"OMP_NUM_THREADS": "many", "COLUMNS": "wide", "LINES": "²"},
    {"SLURM_PROCID": "²", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "²"},
    {"OMPI_COMM_WORLD_RANK": "²", "OMPI_COMM_WORLD_SIZE": "2"},
    {"PMI_FD": "²", "PMI_RANK": "x", "PMI_SIZE": "²"},
    {"HPCASYNC_LIFELINE": "abc"},
    {"HPCASYNC_LIFELINE": "a:²:b"},
    {"TMPDIR": "/absent"},
]


@pytest.mark.parametrize("variables", VARIABLES, ids=" ".join)
def test_no_variable_ends_a_command_with_a_traceback(
    commands: ForkedCommands, place: Path, variables: dict[str, str]
) -> None:
    (place / "g").write_text("the cat sees the dog\n")
    simulate = "simulate run/config.yaml --no-gradients --workers 2 mode=async --parameters 1000"
    for line in ("evaluate f f --system g", simulate, "slurm render run/config.yaml"):
        done = commands(*line.split(), cwd=place, environment=variables, timeout=_TIMEOUT_SECONDS)
        assert "Traceback" not in done.stderr, (line, done.stderr)
        assert done.returncode == 0 or "rror: " in done.stderr, (line, done.stderr)
