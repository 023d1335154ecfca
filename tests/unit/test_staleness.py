"""What is done about stale gradients, under every order of events."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.choices import PullPolicy
from hpcasync.ps.protocol.lookahead import lookahead_steps
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.staleness import Drop, Scale, Unbounded, Wait, make_policy
from hpcasync.ps.protocol.updates import Arrival, UpdateState

WAITING: tuple[PullPolicy, ...] = ("added", "handled", "applied")


def arrival(worker: int, sequence: int, version: int) -> Arrival:
    return Arrival(worker, sequence, PushRecord(version, 10, 1.0, 5, 0.1, ()))


@settings(max_examples=100)
@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.sampled_from(WAITING))
def test_with_wait_no_gradient_is_staler_than_the_limit_and_nobody_waits_for_ever(
    data: st.DataObject, num_workers: int, group: int, limit: int, pull: PullPolicy
) -> None:
    """Workers of any speed, that pull some time after they have been told, and push some time after that."""
    state = UpdateState(num_workers, group, pull=pull, staleness=Wait(limit))
    pushed, told, pulled = [0] * num_workers, [0] * num_workers, [0] * num_workers
    is_applied = [True] * num_workers
    for _ in range(40):
        ready = [w for w in range(num_workers) if told[w] == pushed[w] and (is_applied[w] or pull != "applied")]
        assert ready, "everybody waits"
        worker = data.draw(st.sampled_from(ready))
        if pulled[worker] < state.version and data.draw(st.booleans()):
            pulled[worker] = state.version  # any version between the one it was told at and the newest
        pushed[worker] += 1
        is_applied[worker] = False
        assert state.receive(arrival(worker, pushed[worker], pulled[worker]))
        while state.should_apply():
            for early, sequence in state.tell_added():
                told[early] = sequence
                pulled[early] = max(pulled[early], state.version)
            update = state.apply()
            assert max(update.staleness) <= limit
            for push in update.pushes:
                is_applied[push.worker] = True
                if pull == "applied":  # it pulls only now
                    pulled[push.worker] = state.version
        for worker, sequence in state.tell():
            told[worker] = sequence
            pulled[worker] = max(pulled[worker], state.version)


def test_drop_refuses_what_is_too_old() -> None:
    state = UpdateState(2, 1, staleness=Drop(1))
    for sequence in (1, 2):
        assert state.receive(arrival(0, sequence, state.version))
        state.apply()
    assert not state.receive(arrival(1, 1, 0)), "two updates behind"
    assert state.receive(arrival(1, 2, 1)), "one update behind"
    state.apply()
    assert (state.counts.num_pushed, state.counts.num_applied, state.counts.num_dropped) == (4, 3, 1)


def test_scale_divides_the_learning_rate() -> None:
    assert Scale(1).rate_factor([(0, 5), (1, 7)]) == 1.0
    assert Scale(1).rate_factor([(4, 10)]) == 0.25
    assert Scale(2).rate_factor([(4, 10), (2, 30)]) == pytest.approx((10 * 0.5 + 30) / 40)
    state = UpdateState(2, 1, staleness=Scale(0))
    for sequence in (1, 2):
        state.receive(arrival(0, sequence, state.version))
        assert state.apply().rate_factor == 1.0
    state.receive(arrival(1, 1, 0))
    assert state.apply().rate_factor == 0.5


def test_lookahead_is_a_part_of_the_mean_staleness() -> None:
    assert lookahead_steps(1.0, [1, 1, 0, 1]) == 0.75
    assert lookahead_steps(0.5, [3]) == 1.5
    assert lookahead_steps(0.0, [3]) == 0.0


def test_policies_by_name() -> None:
    assert type(make_policy(None, "wait")) is Unbounded
    for name, kind in (("wait", Wait), ("drop", Drop), ("scale", Scale)):
        assert type(make_policy(1, name)) is kind  # type: ignore[arg-type]
