"""What counts as a stalled worker, and what as a slow one."""

import json
from pathlib import Path

import pytest

from hpcasync.comm.roles import Roles
from hpcasync.config.schedule import StopConfig
from hpcasync.train.records.console import Console
from hpcasync.train.records.recorder import Recorder
from hpcasync.train.supervise.stalls import SlowWorker, Stall, StallDetector
from hpcasync.train.supervise.worker_watch import WorkerWatch


def push_regularly(detector: StallDetector, seconds: dict[int, float], until: float) -> None:
    """Pushes of workers at their intervals, from 0."""
    events = sorted((n * step, w) for w, step in seconds.items() for n in range(1, int(until / step) + 1))
    for now, worker in events:
        assert list(detector.stalls(now)) == []
        assert detector.pushed(worker, now) is None


def test_a_silent_worker_is_reported_once_and_again_after_it_was_back() -> None:
    detector = StallDetector(2, 5.0, 0.0)
    push_regularly(detector, {0: 1.0, 1: 1.0}, 20)
    assert list(detector.stalls(25.0)) == [], "not longer than the shortest that counts"
    detector.pushed(0, 25.1)
    assert list(detector.stalls(25.1)) == [Stall(1, 25.1 - 20.0, 1.0)]
    assert list(detector.stalls(30.0)) == []
    assert detector.pushed(1, 50.0) == 30.0
    detector.pushed(0, 50.5)
    assert [stall.worker for stall in detector.stalls(55.2)] == [1]


def test_the_limit_adapts_to_the_spread() -> None:
    detector = StallDetector(1, 0.1, 0.0)
    now = 0.0
    for number in range(30):
        now += 1.0 + number % 3
        detector.pushed(0, now)
    # Median 2, MAD 1: the limit is 2 + 10 x 1.48, beyond three medians.
    assert list(detector.stalls(now + 16.7)) == []
    assert len(list(detector.stalls(now + 17.0))) == 1


def test_a_worker_without_a_history_is_judged_by_the_others() -> None:
    detector = StallDetector(2, 0.5, 0.0)
    for number in range(1, 11):
        detector.pushed(0, float(number))
    assert list(detector.stalls(10.5)) == [Stall(1, 10.5, 1.0)]


def test_nobody_has_pushed() -> None:
    detector = StallDetector(2, 3.0, 100.0)
    assert list(detector.stalls(129.0)) == []
    assert list(detector.stalls(131.0)) == [Stall(0, 31.0, 0.0), Stall(1, 31.0, 0.0)]


def test_who_has_finished_is_not_missed() -> None:
    detector = StallDetector(2, 1.0, 0.0)
    push_regularly(detector, {0: 1.0, 1: 1.0}, 10)
    detector.finished(1)
    detector.finished(1)
    assert [stall.worker for stall in detector.stalls(100.0)] == [0]


def test_a_slow_worker_is_reported_once_and_is_not_stalled() -> None:
    detector = StallDetector(3, 1.0, 0.0)
    assert list(detector.slow_workers()) == []
    reported: list[SlowWorker] = []
    for step in range(1, 1001):
        now = step / 10
        for worker, every in ((0, 1), (1, 1), (2, 10)):
            if step % every == 0:
                detector.pushed(worker, now)
        reported += list(detector.slow_workers())
    [slow] = reported
    assert slow.worker == 2 and (slow.own_seconds, slow.others_seconds) == pytest.approx((1.0, 0.1))
    assert list(detector.stalls(100.05)) == []


@pytest.mark.parametrize("least_seconds", [0, 2])
def test_reports_name_rank_and_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, least_seconds: float
) -> None:
    monkeypatch.setenv("HPCASYNC_TERMINAL", "0")
    now = [0.0]
    recorder = Recorder(tmp_path, Console(StopConfig(updates=1), 1), every=1, batches_per_epoch=1)
    watch = WorkerWatch(recorder, Roles(("a", "a", "b"), (0,), (1, 2)), least_seconds, lambda: now[0])
    watch.begin()
    for tick in range(40):
        now[0] = tick / 2
        watch.check()
        watch.pushed(0)
        if tick < 20 or tick > 37:
            watch.pushed(1)
    watch.finished(0)
    now[0] += 100
    watch.check()
    recorder.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    said = capsys.readouterr().out.splitlines()
    if not least_seconds:
        assert lines == [] and said == []
        return
    assert [(line["event"], line["worker"], line["rank"], line["host"]) for line in lines] == [
        ("stall", 1, 2, "b"),
        ("stall-over", 1, 2, "b"),
        ("stall", 1, 2, "b"),
    ]
    assert said[0] == "worker 1 (rank 2 on b) has pushed nothing for 2 s, usual are 0.5 s; the others go on"
    assert said[1] == "worker 1 (rank 2 on b) pushes again, after 10 s"
