"""What a person sees: plain lines in a log, a live line on a terminal, and the time that is left."""

import io
from typing import Any

import pytest

from hpcasync.config.schedule import StopConfig
from hpcasync.live_line import LiveLine
from hpcasync.train.records.console import TERMINAL_VARIABLE, Console


def fields(**more: Any) -> dict[str, Any]:
    return {
        "num_updates": 120,
        "num_batches": 30,
        "target_tokens": 5000,
        "wall_seconds": 60.0,
        "data_epoch": 1.5,
        "loss": 3.25,
        "learning_rate": 0.0005,
        "target_tokens_per_second": 4321.6,
        "staleness_mean": 1.25,
        "staleness_max": 4,
        **more,
    }


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TERMINAL_VARIABLE, "0")


def test_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(StopConfig(updates=240), 20)
    console.update(fields(num_updates=60, wall_seconds=30.0))
    console.update(fields(num_updates=120, wall_seconds=60.0))
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("left ?"), "the pace is not known after one record"
    assert second == (
        "update    120  epoch   1.50  loss  3.250  lr 5.00e-04     4,322 tok/s  staleness 1.25 (max 4)  left 0:01:00"
    )


@pytest.mark.parametrize(
    ("stop", "seconds_left"),
    [
        ({"updates": 240}, 60),
        ({"epochs": 4}, 100),  # 30 of 80 batches in 60 s, 20 of them in the last 40 s: 50 more at 2 s each
        ({"tokens": 10_000}, 40),  # 5000 of 10000, 5000 in the last 40 s
        ({"seconds": 90.0}, 30),
        ({"updates": 240, "seconds": 90.0}, 30),  # the nearest limit counts
    ],
)
def test_time_left_at_the_pace_so_far(
    stop: dict[str, Any], seconds_left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(StopConfig(**stop), 20)
    console.update(fields(num_updates=40, num_batches=10, target_tokens=0, wall_seconds=20.0))
    console.update(fields())
    assert capsys.readouterr().out.splitlines()[1].endswith(f"left 0:{seconds_left // 60:02d}:{seconds_left % 60:02d}")


def test_no_limit_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(StopConfig(patience=3), 20)
    console.update(fields(num_updates=60))
    console.update(fields())
    assert all(line.endswith("left ?") for line in capsys.readouterr().out.splitlines())


def test_a_resumed_run_is_timed_from_its_own_start(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(StopConfig(updates=240), 20)
    console.update(fields(num_updates=110, wall_seconds=6000.0))
    console.update(fields(num_updates=120, wall_seconds=6001.0))
    assert capsys.readouterr().out.splitlines()[1].endswith("left 0:00:12")


def test_validation(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {
        "num_updates": 400,
        "wall_seconds": 3725.4,
        "loss": 1.5,
        "perplexity": 4.4817,
        "bleu": 31.256,
        "chrf": 55.0,
    }
    console = Console(StopConfig(updates=1), 1)
    console.validation(scores, is_best=True)
    console.validation(scores, is_best=False)
    first, second = capsys.readouterr().out.splitlines()
    assert second == "validation of update 400 (1:02:05): loss 1.500  perplexity 4.48  BLEU 31.26  chrF 55.00"
    assert first == second + "  best so far"


def test_ranks_at_the_terminal_of_launch_mark_progress(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv(TERMINAL_VARIABLE, "1")
    console = Console(StopConfig(updates=240), 20)
    outdated = [console.is_outdated]
    console.update(fields(num_updates=60))
    assert [*outdated, console.is_outdated] == [True, False]
    console.line("a line")
    console.update(fields())
    console.close()
    first, line, second, end = capfdbinary.readouterr().out.splitlines()
    assert first.startswith(b"\x1e[##--------] update 60 loss 3.250 ") and second.startswith(
        b"\x1e[#####-----] update 120 "
    )
    assert (line, end) == (b"a line", b"\x1e")


def test_lines_stand_above_the_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    terminal, errors = io.BytesIO(), io.BytesIO()
    live = LiveLine(terminal)
    live.write(b"first\n", terminal)
    live.show(b"progress 1 of 2")
    live.write(b"second\n", terminal)
    live.write(b"error\n", errors)
    live.show(b"progress 2")
    live.close()
    erase = b"\r\x1b[2K"
    shown = [b"first\n", erase, b"progress 1 ", erase, b"second\n", b"progress 1 ", erase, b"progress 1 "]
    assert terminal.getvalue() == b"".join([*shown, erase, b"progress 2", b"\n"])
    assert errors.getvalue() == b"error\n"


def test_ranks_of_mpirun_are_no_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(TERMINAL_VARIABLE)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    Console(StopConfig(updates=1), 1).update(fields())
    assert "\x1b" not in capsys.readouterr().out
