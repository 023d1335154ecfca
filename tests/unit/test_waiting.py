"""How often a rank that waits looks, and what that costs those who wait for it; in virtual time."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hpcasync.comm import waiting
from hpcasync.comm.waiting import LONG_SECONDS, Backoff
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.server.polling import Polling


class Clock:
    """Time that passes only while somebody sleeps or gives its turn away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.looks: list[float] = []
        self.turn_seconds = 1e-6
        monkeypatch.setattr(waiting, "time", self)
        monkeypatch.setattr(waiting, "os", self)
        monkeypatch.setattr(Backoff, "_num_shy_waits", 0)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.looks.append(self.now)

    def sched_yield(self) -> None:
        self.now += self.turn_seconds
        self.looks.append(self.now)

    def wait(self, backoff: Backoff, seconds: float) -> int:
        """Wait for so long; returns how often it looked."""
        self.looks.clear()
        ends = self.now + seconds
        while self.now < ends:
            backoff.wait()
        return len(self.looks)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_long_waits_look_seldom(clock: Clock) -> None:
    # At 30 microseconds a look that is less than 1 % of a core.
    assert clock.wait(Backoff(LONG_SECONDS), 10.0) < 2500


def test_a_look_is_late_by_a_hundredth_of_the_wait_or_a_millisecond(clock: Clock) -> None:
    clock.wait(Backoff(LONG_SECONDS), 10.0)
    began = 0.0
    late = [(later - earlier, earlier - began) for earlier, later in zip(clock.looks, clock.looks[1:], strict=False)]
    assert all(sleep <= max(0.001, 0.01 * waited) + 1e-12 for sleep, waited in late)
    assert max(sleep for sleep, _ in late) == pytest.approx(0.005)


def test_short_waits_look_often_and_a_reset_begins_anew(clock: Clock) -> None:
    backoff = Backoff()
    clock.wait(backoff, 1.0)
    backoff.reset()
    # Forty turns of a microsecond, then sleeps of 20 microseconds, 40, 60, …
    assert clock.wait(backoff, 0.001) == 40 + 10
    assert clock.looks[39] == pytest.approx(clock.looks[0] + 39e-6)


def test_who_computes_on_the_same_core_is_not_given_turns(clock: Clock) -> None:
    clock.turn_seconds = 0.004
    backoff = Backoff()
    assert clock.wait(backoff, 0.004) == 1  # somebody took the core for four milliseconds
    backoff.wait()
    assert clock.looks[-1] - clock.looks[-2] < 0.001  # so it sleeps, and is woken
    num_turns = 0
    for _ in range(100):
        another = Backoff()
        before = clock.now
        another.wait()
        num_turns += clock.now - before >= 0.004
    assert num_turns == 0
    assert clock.wait(Backoff(), 0.004) == 1, "it tries again from time to time"


class Windows:
    """As much of a `Link` as `Polling` looks at; everything is on several hosts."""

    num_workers = 3
    spans_nodes = True
    is_sending = False

    def __init__(self) -> None:
        self.data = self.control = self
        self.words = np.zeros(ControlWords.count(self.num_workers, 1), np.int64)
        self.make_wait = Backoff

    def local(self) -> NDArray[np.int64]:
        return self.words


def longest_sleep(clock: Clock, attention: Polling, seconds: float) -> float:
    clock.looks.clear()
    ends = clock.now + seconds
    while clock.now < ends:
        attention.wait()
    return max(later - earlier for earlier, later in zip(clock.looks, clock.looks[1:], strict=False))


def test_servers_look_more_often_while_data_moves_between_hosts(clock: Clock) -> None:
    windows = Windows()
    attention = Polling(windows)  # type: ignore[arg-type]
    assert longest_sleep(clock, attention, 0.1) == pytest.approx(0.0001)
    assert longest_sleep(clock, attention, 10.0) == pytest.approx(0.005, rel=0.01)
    windows.words[ControlWords.begun(2)] = 7
    before = clock.now
    attention.wait()
    assert clock.now - before < 1e-5, "it is quick at first"
    assert longest_sleep(clock, attention, 10.0) == pytest.approx(0.0001)
    attention.arrived(2, 7)
    attention.reset()
    assert longest_sleep(clock, attention, 10.0) == pytest.approx(0.005, rel=0.01)
    windows.is_sending = True
    assert longest_sleep(clock, attention, 10.0) == pytest.approx(0.0001)


def test_words_of_workers_do_not_overlap() -> None:
    names = ("announced", "consumed", "settled", "finished", "handled", "rests", "offers", "offered_ticket", "begun")
    words = [getattr(ControlWords, name)(worker) for worker in range(3) for name in names]
    words += [ControlWords.applied(3, server) for server in range(2)]
    assert len(set(words)) == len(words) and max(words) == ControlWords.count(3, 2) - 1
    assert list(range(max(words))[ControlWords.all_begun(3)]) == [ControlWords.begun(worker) for worker in range(3)]
