"""A short form of soak.py: every rank is stopped at least once."""

import sys
from pathlib import Path

from forked_ranks import ForkedRanks
from soak import Plan, growth, run_soak


def test_counts_balance_while_ranks_are_stopped(tmp_path: Path, forked: ForkedRanks | None) -> None:
    plan = Plan(num_stops=12, pause_seconds=0.05, stop_seconds=0.1)
    soak = run_soak(tmp_path, plan, sys.executable if forked is None else forked.python)
    assert set(soak.stops) == set(range(6)) and min(soak.stops.values()) >= 1
    assert soak.segments  # some to be left behind
    assert soak.result["num_updates"] >= 200
    assert any(worker["noted"] for worker in soak.result["workers"])


def test_growth_is_what_comes_late() -> None:
    settling = [(float(second), 100.0 + min(second, 20)) for second in range(100)]
    leaking = [(float(second), 100.0 + second) for second in range(100)]
    assert growth(settling) == 0.0
    assert growth(leaking) == 25.0
