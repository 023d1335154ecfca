"""The decisions of the protocol under every order of events: nothing lost or doubled, no wait without an end."""

from collections import Counter
from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hpcasync.choices import PullPolicy
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Arrival, Update, UpdateState


def arrival(worker: int, sequence: int, *, version: int = 0, num_tokens: int = 10, ticket: int = 0) -> Arrival:
    return Arrival(worker, sequence, PushRecord(version, num_tokens, 1.0, 5, 0.1, (ticket,)))


class Protocol(RuleBasedStateMachine):
    """Workers that pull, push and finish in any order around one `UpdateState`, with a model beside it."""

    @initialize(
        num_workers=st.integers(1, 4),
        pushes_per_update=st.integers(1, 5),
        pull=st.sampled_from(get_args(PullPolicy)),
        version=st.integers(0, 3),
    )
    def begin(self, num_workers: int, pushes_per_update: int, pull: PullPolicy, version: int) -> None:
        self.state = UpdateState(num_workers, pushes_per_update, pull=pull, version=version)
        self.first_version = version
        self.pushes_per_update = pushes_per_update
        self.pull_applied = pull == "applied"
        self.pulled = [version] * num_workers
        self.num_pushed = [0] * num_workers
        self.active = set(range(num_workers))
        self.pending: list[Arrival] = []
        self.dropped: list[Arrival] = []
        self.updates: list[Update] = []

    def is_waiting(self, worker: int) -> bool:
        """A worker with exchange.pull: applied that cannot go on before its push is part of a version."""
        return self.pull_applied and any(push.worker == worker for push in self.pending)

    def free_workers(self) -> list[int]:
        return [worker for worker in sorted(self.active) if not self.is_waiting(worker)]

    @precondition(lambda self: self.free_workers())
    @rule(data=st.data(), num_tokens=st.sampled_from([0, 7, 7, 9]))
    def push(self, data: st.DataObject, num_tokens: int) -> None:
        worker = data.draw(st.sampled_from(self.free_workers()))
        self.num_pushed[worker] += 1
        push = arrival(worker, self.num_pushed[worker], version=self.pulled[worker], num_tokens=num_tokens)
        accepted = self.state.receive(push)
        assert accepted == (num_tokens > 0 and not self.state.is_stopping)
        (self.pending if accepted else self.dropped).append(push)
        self.apply_what_is_complete()

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def pull(self, data: st.DataObject) -> None:
        self.pulled[data.draw(st.sampled_from(sorted(self.active)))] = self.state.version

    @precondition(lambda self: self.free_workers())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.free_workers()))
        self.active.discard(worker)
        self.state.finish(worker)
        self.apply_what_is_complete()

    @precondition(lambda self: not self.state.is_stopping)
    @rule()
    def stop(self) -> None:
        assert self.state.stop() == self.pending
        self.dropped += self.pending
        self.pending = []
        assert not self.state.should_apply()

    @rule()
    def ask(self) -> None:
        assert not self.state.should_apply(), "a complete group is applied as soon as it is complete"
        assert self.state.is_finished == (not self.active)

    def apply_what_is_complete(self) -> None:
        if not self.state.should_apply():
            return
        can_grow = bool(self.free_workers())
        update = self.state.apply()
        assert update.version == self.first_version + len(self.updates) + 1, "versions go up by one"
        assert list(update.pushes) == self.pending, "the group is everything that was accepted, in order of arrival"
        assert len(update.pushes) == self.pushes_per_update or not can_grow, "a smaller group can grow no more"
        assert update.num_tokens == sum(push.record.num_tokens for push in self.pending)
        assert update.staleness == [update.version - 1 - push.record.version for push in self.pending]
        assert min(update.staleness) >= 0
        self.updates.append(update)
        self.pending = []
        assert not self.state.should_apply()

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "state"):
            return
        counts = self.state.counts
        assert counts.num_pushed == sum(self.num_pushed)
        assert counts.num_dropped == len(self.dropped)
        assert counts.num_applied == sum(len(update.pushes) for update in self.updates)
        assert counts.num_pushed == counts.num_applied + counts.num_dropped + len(self.pending)
        assert counts.staleness == Counter(stale for update in self.updates for stale in update.staleness)
        assert self.state.version == self.first_version + len(self.updates)
        assert [self.state.num_received(worker) for worker in range(len(self.num_pushed))] == self.num_pushed

    @invariant()
    def somebody_can_go_on(self) -> None:
        if hasattr(self, "state") and self.active:
            assert self.free_workers(), "every active worker waits for a group that nobody will complete"

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        while self.active:
            self.active.discard(worker := self.free_workers()[0])
            self.state.finish(worker)
            self.apply_what_is_complete()
        assert self.state.is_finished and not self.pending
        counts = self.state.counts
        assert counts.num_pushed == counts.num_applied + counts.num_dropped
        seen = [push for update in self.updates for push in update.pushes] + self.dropped
        assert Counter((push.worker, push.sequence) for push in seen) == Counter(
            (worker, sequence) for worker, number in enumerate(self.num_pushed) for sequence in range(1, number + 1)
        )


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=80, stateful_step_count=30)


def test_groups_worked_out_by_hand() -> None:
    state = UpdateState(2, 2, version=5)
    assert state.receive(arrival(0, 1, version=5, num_tokens=10)) and not state.should_apply()
    assert state.receive(arrival(0, 2, version=4, num_tokens=20)) and state.should_apply()
    update = state.apply()
    assert (update.version, update.num_tokens, update.staleness) == (6, 30, [0, 1])
    assert state.receive(arrival(1, 1, version=4, num_tokens=5)) and not state.should_apply()
    state.finish(0)
    assert not state.should_apply(), "worker 1 may still complete the group"
    state.finish(1)
    was_finished_before, last = state.is_finished, state.apply()
    assert not was_finished_before and last.staleness == [2]
    assert state.is_finished
    assert state.counts.staleness == {0: 1, 1: 1, 2: 1}


def test_waiting_workers_complete_a_group() -> None:
    state = UpdateState(2, 4, pull="applied")
    state.receive(arrival(0, 1))
    assert not state.should_apply()
    state.receive(arrival(1, 1))
    assert state.should_apply(), "both workers wait for an update of a group of 2 that could never be 4"


def test_at_the_start_workers_wait_for_their_update_and_then_no_more() -> None:
    state = UpdateState(3, 3, fresh_updates=1)
    for worker in (0, 1):
        state.receive(arrival(worker, 1))
        assert state.tell() == [], "worker 2 computes still"
    state.receive(arrival(2, 1, num_tokens=0))
    assert state.tell() == [(2, 1)], "a rejected gradient is part of no update"
    state.receive(arrival(2, 2))
    assert state.apply().staleness == [0, 0, 0]
    assert state.tell() == [(0, 1), (1, 1), (2, 2)]
    state.receive(arrival(0, 2, version=1))
    assert state.tell() == [(0, 2)], "that was the last of the fresh updates"


def test_nobody_waits_at_the_start_for_an_update_that_nobody_would_complete() -> None:
    state = UpdateState(2, 3, fresh_updates=5)
    state.receive(arrival(0, 1))
    assert state.tell() == []
    state.receive(arrival(1, 1))
    assert state.tell() == [(0, 1), (1, 1)], "two workers complete a group of three by computing on"
    state.receive(arrival(0, 2))
    assert state.apply().staleness == [0, 0, 0]
    assert state.tell() == [(0, 2)]
    state.receive(arrival(0, 3, version=1))
    state.finish(1)
    assert state.tell() == [(0, 3)], "worker 1 has nothing more to give"


def test_a_rejected_gradient_is_counted_and_waits_for_nothing() -> None:
    state = UpdateState(1, 1, pull="applied")
    assert not state.receive(arrival(0, 1, num_tokens=0))
    assert (state.counts.num_pushed, state.counts.num_dropped) == (1, 1) and not state.should_apply()


def test_stop_drops_what_is_accumulated_and_what_comes_after() -> None:
    state = UpdateState(2, 3)
    state.receive(arrival(0, 1))
    state.receive(arrival(1, 1))
    assert state.stop() == [arrival(0, 1), arrival(1, 1)]
    assert not state.receive(arrival(0, 2))
    state.finish(0)
    state.finish(1)
    counts = state.counts
    assert (counts.num_pushed, counts.num_applied, counts.num_dropped) == (3, 0, 3)
    assert state.is_finished and state.version == 0


@pytest.mark.parametrize(
    ("push", "message"),
    [
        (arrival(0, 2), "in order, once"),
        (arrival(0, 0), "in order, once"),
        (arrival(0, 1, version=1), "not there yet"),
        (arrival(1, 1), "had finished"),
    ],
)
def test_what_cannot_happen_is_caught(push: Arrival, message: str) -> None:
    state = UpdateState(2, 2)
    state.finish(1)
    with pytest.raises(AssertionError, match=message):
        state.receive(push)


def test_apply_needs_a_complete_group() -> None:
    with pytest.raises(AssertionError):
        UpdateState(1, 2).apply()


def test_added_lets_workers_go_on_before_the_update_that_they_complete() -> None:
    state = UpdateState(2, 2, pull="added", fresh_updates=1)
    state.receive(arrival(0, 1))
    assert state.tell() == [], "the start is fresh"
    state.receive(arrival(1, 1))
    assert state.tell_added() == [], "fresh still"
    state.apply()
    assert state.tell() == [(0, 1), (1, 1)]
    state.receive(arrival(0, 2, version=1))
    assert state.tell() == [(0, 2)]
    state.receive(arrival(1, 2, version=1))
    assert state.tell_added() == [(1, 2)]
    assert state.apply().staleness == [0, 0]
    assert state.tell() == []
