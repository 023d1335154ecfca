"""When training ends: limits, signals, gradients and losses out of bounds."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hpcasync.config.schedule import StopConfig
from hpcasync.exit_codes import DIVERGED, PREEMPTED
from hpcasync.runs.counters import Counters
from hpcasync.train.supervise import stop_signals
from hpcasync.train.supervise.stopping import WINDOW_UPDATES, Divergence, Ending, StopRules


@pytest.fixture
def signals() -> Iterator[None]:
    stop_signals.note_stop_signals()
    yield
    stop_signals.forget()


def make(**stop: float) -> StopRules:
    return StopRules(StopConfig.model_validate({"updates": 1000, **stop}))


def test_the_first_reason_stands() -> None:
    rules = make(tokens=50, seconds=9)
    rules.check_time(8.9)
    rules.check_counters(Counters(num_updates=999, target_tokens=49))
    assert not rules.ending
    rules.check_counters(Counters(num_updates=999, target_tokens=50))
    rules.check_time(9)
    rules.check_counters(Counters(num_updates=1000))
    assert rules.ending == Ending("stop.tokens=50 reached", 0)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_ends_training_with_a_code_of_its_own(signals: None, number: signal.Signals) -> None:
    rules = make()
    rules.check_signals()
    assert not rules.ending
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGUSR1)
    rules.check_signals()
    assert rules.ending == Ending(f"preempted by {number.name}", PREEMPTED)


def test_a_second_term_ends_the_process() -> None:
    program = (
        "import os, signal; from hpcasync.train.supervise.stop_signals import note_stop_signals; note_stop_signals(); "
        "os.kill(os.getpid(), signal.SIGTERM); print('alive', flush=True); os.kill(os.getpid(), signal.SIGTERM); "
        "print('still')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "alive\n")


def test_a_limit_that_was_reached_before_the_signal_stands(signals: None) -> None:
    rules = make(updates=1)
    rules.check_counters(Counters(num_updates=1))
    os.kill(os.getpid(), signal.SIGUSR1)
    rules.check_signals()
    assert rules.ending is not None and rules.ending.exit_code == 0


def test_rejected_gradients_in_a_row(signals: None) -> None:
    rules = make(rejected=3)
    for _ in range(3):
        rules.after_rejected()
        rules.after_rejected()
        assert rules.ending is None
        rules.after_update(Counters(), 1.0, 1)
    for _ in range(3):
        rules.after_rejected()
    assert rules.ending is not None and rules.ending.exit_code == DIVERGED
    assert rules.ending.reason == "training has diverged: 3 gradients in a row were not finite (stop.rejected)"
    never = make(rejected=0)
    for _ in range(1000):
        never.after_rejected()
    assert never.ending is None


def test_a_loss_that_is_not_finite_comes_before_a_limit() -> None:
    rules = make(updates=1)
    rules.after_update(Counters(num_updates=1), math.nan, 10)
    assert rules.ending == Ending("training has diverged: the loss is not finite", DIVERGED)


def test_divergence_compares_means_over_tokens() -> None:
    divergence = Divergence(2.0)

    def window(losses: list[float], tokens: int) -> list[str]:
        return [divergence.add(loss * tokens, tokens) for loss in losses]

    half = WINDOW_UPDATES // 2
    assert not any(window([4.0] * half + [2.0] * half, 10)), "a mean of 3"
    assert not any(window([5.9] * WINDOW_UPDATES, 1000)), "less than twice as much"
    assert not any(window([1.0] * WINDOW_UPDATES, 7))
    texts = window([2.1] * WINDOW_UPDATES, 3)
    assert texts[-1] == f"the loss of the last {WINDOW_UPDATES} updates is 2.100, after 1.000" and not any(texts[:-1])


def test_divergence_ends_training_where_asked() -> None:
    for factor, expected in ((0, None), (1.5, DIVERGED)):
        rules = make(diverged=factor)
        for loss in (2.0, 4.0):
            for _ in range(WINDOW_UPDATES):
                rules.after_update(Counters(), loss * 10, 10)
        assert (rules.ending.exit_code if rules.ending else None) == expected


@pytest.mark.parametrize(
    ("num_updates", "num_rejected", "code"), [(0, 0, 0), (0, 1, DIVERGED), (3, 19, 0), (3, 20, DIVERGED), (3, 0, 0)]
)
def test_a_corpus_that_ends_with_nothing_but_rejected_gradients_is_no_success(
    num_updates: int, num_rejected: int, code: int
) -> None:
    rules = StopRules(StopConfig(updates=100))
    for _ in range(num_updates):
        rules.after_update(Counters(), 1.0, 1)
    for _ in range(num_rejected):
        rules.after_rejected()
    assert rules.ending is None and rules.end_of_corpus(num_updates).exit_code == code
