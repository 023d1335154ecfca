"""Whether a job that died is started again, and how."""

import os
import signal
import time
from pathlib import Path

import pytest

from hpcasync.exit_codes import DIVERGED, PREEMPTED
from hpcasync.launch import restarts
from hpcasync.launch.restarts import Attempt, arguments_to_go_on, newest_checkpoint, reason_to_end, run_with_restarts
from hpcasync.launch.supervision import SupervisedJob

COMMAND = ["train", "x.yaml", "seed=2"]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "_PAUSE_SECONDS", 0.0)


def attempt(code: int, number: int = 1, before: str = "", after: str = "", *signals: int) -> Attempt:
    return Attempt(SupervisedJob(code, signals), number, before, after)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (attempt(0), ""),
        (attempt(2), ""),
        (attempt(PREEMPTED), ""),
        (attempt(DIVERGED), ""),
        (attempt(137), None),
        (attempt(1, 2, "u1", "u2"), None),
        (attempt(137, 2, "u2", "u2"), "code 137, and its last start brought no new checkpoint: giving up"),
        (attempt(137, 2), "brought no new checkpoint"),
        (attempt(137, 4, "u1", "u2"), "code 137, after 3 restart"),
        (attempt(143, 1, "", "u2", signal.SIGTERM), "code 143 after a signal to end it"),
        (attempt(137, 1, "", "u2", signal.SIGUSR1), None),
    ],
)
def test_reasons(ended: Attempt, expected: str | None) -> None:
    reason = reason_to_end(ended, 3)
    assert reason == expected if not expected else expected in str(reason)


def add_checkpoint(run_dir: Path, number: int) -> None:
    directory = run_dir / "checkpoints" / f"u{number:08d}"
    directory.mkdir(parents=True)
    (directory / "state.json").write_text("{}")


def test_the_newest_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(None) == newest_checkpoint(tmp_path) == ""
    for number in (9, 10):
        add_checkpoint(tmp_path, number)
    (tmp_path / "checkpoints" / "u00000011.partial").mkdir()
    (tmp_path / "checkpoints" / "u00000011.partial" / "state.json").touch()
    (tmp_path / "checkpoints" / "u00000012").mkdir()
    assert newest_checkpoint(tmp_path) == "u00000010"


@pytest.mark.parametrize("given", [[], ["--overwrite"], ["--resume"]])
def test_flags_of_the_next_start(tmp_path: Path, given: list[str]) -> None:
    began = time.time()
    command = [*COMMAND, *given]
    assert arguments_to_go_on(command, tmp_path, began) == command, "it had not begun its run"
    (tmp_path / "config.yaml").touch()
    assert arguments_to_go_on(command, tmp_path, began) == [*COMMAND, "--overwrite"]
    add_checkpoint(tmp_path, 5)
    assert arguments_to_go_on(command, tmp_path, began) == [*COMMAND, "--resume"]
    os.utime(tmp_path / "config.yaml", (began - 60, began - 60))
    assert arguments_to_go_on(command, tmp_path, began) == command, "a run of somebody else"
    assert arguments_to_go_on(command, None, began) == command


class Job:
    """Ends with the given codes; writes the given checkpoint before."""

    def __init__(self, run_dir: Path, *endings: tuple[int, int]) -> None:
        self.run_dir = run_dir
        self.endings = list(endings)
        self.started: list[list[str]] = []

    def __call__(self, arguments: list[str]) -> SupervisedJob:
        self.started.append(arguments[len(COMMAND) :])
        (self.run_dir / "config.yaml").touch()
        code, number = self.endings.pop(0)
        if number:
            add_checkpoint(self.run_dir, number)
        return SupervisedJob(code, ())


def test_it_goes_on_until_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path, (137, 0), (137, 10), (1, 20), (0, 30))
    assert run_with_restarts(job, COMMAND, tmp_path, 5) == 0
    assert job.started == [[], ["--overwrite"], ["--resume"], ["--resume"]]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "hpcasync: the job ended with code 137; restart 1 of 5: train x.yaml seed=2 --overwrite"
    assert len(said) == 3


@pytest.mark.parametrize(
    ("endings", "max_restarts", "said"),
    [
        ([(137, 10), (137, 0)], 5, "its last start brought no new checkpoint: giving up; `--resume` goes on from "),
        ([(137, 10), (137, 20)], 1, "after 1 restart(s); `--resume` goes on from "),
        ([(137, 0)], 0, "the job ended with code 137; there is no checkpoint to go on from"),
    ],
)
def test_it_gives_up(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    endings: list[tuple[int, int]],
    max_restarts: int,
    said: str,
) -> None:
    job = Job(tmp_path, *endings)
    assert run_with_restarts(job, COMMAND, tmp_path, max_restarts) == 137
    assert len(job.started) == len(endings)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_mistakes_and_preemptions_end_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code in (2, PREEMPTED, DIVERGED):
        assert run_with_restarts(Job(tmp_path, (code, 0)), COMMAND, tmp_path, 5) == code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("flag", "is_advised"), [("--overwrite", False), ("--resume", True)])
def test_a_run_that_was_to_be_overwritten_is_no_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, is_advised: bool
) -> None:
    """The job died before it began its own, as where mpirun finds not enough slots."""
    (tmp_path / "config.yaml").touch()
    add_checkpoint(tmp_path, 10)
    long_ago = time.time() - 600
    os.utime(tmp_path / "config.yaml", (long_ago, long_ago))
    assert run_with_restarts(lambda _: SupervisedJob(1, ()), [*COMMAND, flag], tmp_path, 0) == 1
    assert ("checkpoint" in capsys.readouterr().err) == is_advised
