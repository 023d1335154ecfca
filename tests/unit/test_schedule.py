"""The learning rate: values worked out by hand, and no jump anywhere."""

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.config.schedule import ScheduleConfig, StopConfig
from hpcasync.runs.counters import Counters
from hpcasync.train.loop.schedule import in_batches, learning_rate

PEAK = 0.001
Name = Literal["inverse_sqrt", "constant", "cosine"]


def rate(schedule: ScheduleConfig, updates: int, *, batches: int = 0, tokens: int = 0) -> float:
    counters = Counters(num_updates=updates, num_batches=batches, target_tokens=tokens)
    return learning_rate(OptimizerConfig(learning_rate=PEAK), schedule, counters)


@pytest.mark.parametrize(
    ("name", "now", "factor"),
    [
        ("inverse_sqrt", 1, 0.01),
        ("inverse_sqrt", 50, 0.5),
        ("inverse_sqrt", 100, 1.0),
        ("inverse_sqrt", 400, 0.5),
        ("inverse_sqrt", 2500, 0.2),
        ("constant", 50, 0.5),
        ("constant", 100, 1.0),
        ("constant", 10**6, 1.0),
        ("cosine", 50, 0.5),
        ("cosine", 100, 1.0),
        ("cosine", 200, 0.75),  # a third of the way: (1 + cos 60 degrees) / 2
        ("cosine", 250, 0.5),
        ("cosine", 400, 0.0),
        ("cosine", 500, 0.0),
    ],
)
def test_values_worked_out_by_hand(name: Name, now: int, factor: float) -> None:
    schedule = ScheduleConfig(name=name, warmup=100, total=400 if name == "cosine" else 0)
    assert rate(schedule, now) == pytest.approx(PEAK * factor, abs=1e-15)


def test_no_warmup() -> None:
    assert rate(ScheduleConfig(name="constant", warmup=0), 1) == PEAK
    assert rate(ScheduleConfig(name="inverse_sqrt", warmup=0), 1) == PEAK
    assert rate(ScheduleConfig(name="inverse_sqrt", warmup=0), 4) == pytest.approx(PEAK / 2)


def test_units() -> None:
    for unit, expected in (("updates", 0.1), ("batches", 0.2), ("tokens", 0.5)):
        schedule = ScheduleConfig.model_validate({"unit": unit, "warmup": 1000})
        assert rate(schedule, 100, batches=200, tokens=500) == pytest.approx(PEAK * expected)


def test_epochs_are_batches_of_the_corpus() -> None:
    stop = StopConfig(epochs=20)
    whole = in_batches(ScheduleConfig(name="cosine", unit="epochs", warmup=2), stop, 30)
    assert (whole.unit, whole.warmup, whole.total) == ("batches", 60, 600)
    assert rate(whole, 1, batches=60) == PEAK and rate(whole, 1, batches=600) == pytest.approx(0)
    part = in_batches(ScheduleConfig(name="cosine", unit="epochs", warmup=0, total=10), stop, 30)
    assert rate(part, 1, batches=150) == pytest.approx(PEAK / 2)
    tokens = ScheduleConfig(unit="tokens", warmup=7)
    assert in_batches(tokens, stop, 30) is tokens


@given(
    name=st.sampled_from(["inverse_sqrt", "constant", "cosine"]),
    warmup=st.integers(2, 100_000),
    more=st.integers(2, 100_000),
    now=st.integers(1, 300_000),
)
def test_never_above_the_peak_and_continuous(name: Name, warmup: int, more: int, now: int) -> None:
    schedule = ScheduleConfig(name=name, warmup=warmup, total=warmup + more)
    assert rate(schedule, warmup) == pytest.approx(PEAK)
    assert 0 <= rate(schedule, now) <= PEAK * (1 + 1e-12)
    # One step changes no more than the steepest of: the warm-up, the start of the decay, half a cosine.
    steepest = PEAK * max(1 / warmup, math.pi / 2 / more)
    for position in (now, warmup - 1, warmup, warmup + more - 1):
        assert abs(rate(schedule, position + 1) - rate(schedule, position)) <= steepest * (1 + 1e-9)
