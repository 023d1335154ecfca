"""Mistakes put into the protocol on purpose, all of which the walk through its interleavings finds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from protocol_model import Options, ViolationError, check
from protocol_model.options import ALONE, HOSTS, IN_TURN, STREAMS, SURVIVED

from hpcasync.ps.protocol import slots
from hpcasync.ps.protocol.host_group import Exchange, HostGroup
from hpcasync.ps.protocol.lost_work import LostWork
from hpcasync.ps.protocol.orders import Kind
from hpcasync.ps.protocol.slots import Step
from hpcasync.ps.protocol.updates import Arrival, UpdateState
from hpcasync.ps.protocol.working import Working

FAR = frozenset({0})
AHEAD = Options(num_tickets=3, num_slots=1, in_place=True, ahead=True)


@pytest.mark.parametrize(
    ("bug", "options", "expected"),
    [
        ("announce before flush", Options(num_tickets=1), "push 1 of worker . reads -1"),
        ("no writing check", Options(num_tickets=2, num_servers=1, pushes_per_update=1), "a pull of version"),
        ("weak writing check", Options(num_tickets=3, num_servers=1, pushes_per_update=1), "a pull of version"),
        ("write before telling", Options(num_tickets=2, num_servers=1, pushes_per_update=1), "a pull of version"),
        ("consume before accumulate", Options(num_tickets=2, num_slots=1), "reads"),
        ("no slot check", Options(num_tickets=2, num_slots=1), "before it was consumed"),
        ("slot check at the coordinator only", Options(num_tickets=2, num_slots=1), "before it was consumed"),
        ("announce before flush", Options(num_tickets=1, in_place=True), "push 1 of worker . reads -1"),
        ("one vector too few", Options(num_tickets=2, num_slots=1, in_place=True, spare=0), "before it was consumed"),
        ("one vector too few", Options(num_tickets=3, num_servers=1, in_place=True, spare=0), "before it was consumed"),
        ("no look at what was read", AHEAD, "before it was consumed"),
        ("one vector too few", replace(AHEAD, num_slots=2, spare=0), "before it was consumed|waits for"),
        ("announced read before finished", Options(num_tickets=1), "pushed after it had finished"),
        ("no barrier", Options(num_tickets=1, pushes_per_update=1), "a pull of version"),
        ("no refusal", Options(num_tickets=2, num_servers=1, pushes_per_update=1, far=FAR), "a pull of version"),
        ("no copy before writing", Options(num_tickets=3, num_servers=1, pushes_per_update=1, far=FAR), "a pull of"),
        ("no barrier", Options(num_tickets=1, pushes_per_update=1, far=frozenset({1})), "a pull of version"),
        ("settle before publish", Options(num_tickets=2, pull="applied"), "lacks the own push"),
        ("handle before update", Options(num_tickets=2, pull="handled"), "lacks the own push"),
        ("let go before arrivals", replace(SURVIVED, num_tickets=1), "twice|were announced"),
        ("no wait for the computation", replace(STREAMS, num_tickets=1), "push 1 of worker . reads (0|-1)"),
        ("no wait for the computation", replace(STREAMS, num_tickets=1, in_place=True), "push 1 of worker . reads"),
        ("no wait for the computation", replace(ALONE, in_place=True, ahead=True), "push 1 of worker 0 reads"),
        ("announce before flush", replace(STREAMS, num_tickets=1), "push 1 of worker . reads (0|-1)"),
        ("no wait for what is not pushed", replace(STREAMS, rejected=frozenset({(0, 1)})), "is computed from"),
        ("no wait for the pull", replace(ALONE, num_tickets=1), "version 0 is computed from"),
        ("no wait for the pull", replace(ALONE, in_place=True, ahead=True, spare=2), "is computed from"),
        ("weak writing check", replace(ALONE, num_tickets=4), "is computed from"),
        ("write before telling", replace(ALONE, num_tickets=4), "is computed from"),
        ("no wait for what was received", replace(ALONE, num_tickets=1, far=FAR), "version 0 is computed from"),
        ("no copy before writing", replace(ALONE, num_tickets=4, far=FAR), "a pull of"),
        ("no barrier", replace(ALONE, num_tickets=2, num_servers=2), "is computed from"),
        ("no slot check", replace(ALONE, num_slots=1, pushes_per_update=2), "was overwritten|before it was consumed"),
        ("sums stay in slots", replace(HOSTS, num_workers=1, num_slots=1, num_tickets=3, pushes_per_update=3), "reads"),
        ("sums are not cleared", replace(HOSTS, num_workers=1), "a shard applies"),
        ("no wait for what leaves", replace(HOSTS, num_tickets=1, streams=True), "a shard applies"),
        ("no wait for what is sent", replace(HOSTS, num_tickets=1), "a shard applies"),
    ],
)
def test_a_seeded_mistake_is_found(bug: str, options: Options, expected: str) -> None:
    with pytest.raises(ViolationError, match=expected) as caught:
        check(replace(options, bugs=frozenset({bug})))
    assert "after: worker" in str(caught.value), "the story is told"


@pytest.mark.parametrize(
    ("kind", "steps", "options", "expected"),
    [
        (Kind.APPLY, (Step.APPLY, Step.CONSUME, Step.PUBLISH), ALONE, "reads|is computed from"),
        (
            Kind.APPLY,
            (Step.APPLY, Step.PUBLISH, Step.COMPLETE, Step.CONSUME),
            replace(ALONE, num_servers=2, num_tickets=2),
            "is computed from",
        ),
        (Kind.APPLY, (Step.APPLY, Step.CONSUME, Step.COMPLETE, Step.PUBLISH), ALONE, "push 1 of worker 0 reads -3"),
        (
            Kind.READ,
            (Step.FOLD, Step.CONSUME),
            replace(ALONE, pushes_per_update=3, reads_idle=True),
            "push 1 of worker 0 reads -3",
        ),
        (
            Kind.DROP,
            (Step.FOLD, Step.CONSUME),
            replace(ALONE, pushes_per_update=2, rejected=frozenset({(0, 2)})),
            "push 1 of worker 0 reads -3",
        ),
    ],
)
def test_a_server_that_does_not_wait_for_its_kernels_is_found(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, steps: Sequence[Step], options: Options, expected: str
) -> None:
    monkeypatch.setitem(slots._STEPS, kind, steps)
    with pytest.raises(ViolationError, match=expected):
        check(options)


def test_a_server_that_gives_the_last_slot_back_before_it_has_read_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_NOW", (Step.TAKE, Step.FOLD, Step.CONSUME))
    with pytest.raises(ViolationError, match="push 1 of worker 0 reads -2"):
        check(replace(ALONE, num_tickets=2, num_slots=1, pushes_per_update=2))


def sends_again(group: HostGroup) -> Exchange:
    """Forget whom to wait for, not that there is something to be sent."""
    exchange = Exchange(not group.is_empty, tuple(sorted(group.awaited)))
    group.awaited.clear()
    return exchange


def waits_again(group: HostGroup) -> Exchange:
    """Forget what is to be sent, not whom to wait for."""
    exchange = Exchange(not group.is_empty, tuple(sorted(group.awaited)))
    group.is_empty = True
    return exchange


def waits_for_nobody(group: HostGroup) -> Exchange:
    """Send only."""
    exchange = Exchange(not group.is_empty, ())
    group.clear()
    return exchange


def takes_all(group: HostGroup, worker: int) -> bool:
    """Take gradients of other hosts for those of this one."""
    TAKE(group, worker)
    return True


TAKE = HostGroup.take


@pytest.mark.parametrize(
    ("name", "mistake", "options", "expected"),
    [
        ("exchange", sends_again, IN_TURN, "a sum was never added"),
        ("exchange", waits_again, IN_TURN, "for ever"),
        ("exchange", waits_for_nobody, IN_TURN, "a shard applies"),
        ("take", takes_all, replace(IN_TURN, pushes_per_update=2), "a shard applies"),
    ],
)
def test_a_mistake_about_sums_of_hosts_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, mistake: Callable[..., Any], options: Options, expected: str
) -> None:
    monkeypatch.setattr(HostGroup, name, mistake)
    with pytest.raises(ViolationError, match=expected):
        check(options)


def test_a_worker_that_waits_for_a_full_group_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpdateState, "should_apply", lambda self: len(self._group) >= self._pushes_per_update)
    with pytest.raises(ViolationError, match="somebody waits for ever"):
        check(Options(num_tickets=2, pull="applied", pushes_per_update=3))


def test_a_worker_that_does_not_wait_in_the_fresh_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Working, "after_push", lambda self, version: None)
    with pytest.raises(ViolationError, match="a stale gradient in the fresh start"):
        check(Options(num_tickets=4, num_servers=1, fresh_updates=2))


def test_a_fresh_start_that_tells_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpdateState, "_held_back", lambda self: set())
    with pytest.raises(ViolationError, match="a stale gradient in the fresh start"):
        check(Options(num_tickets=4, num_servers=1, fresh_updates=2))


def test_a_wait_that_forgets_who_is_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpdateState, "should_apply", UpdateState._is_complete)
    with pytest.raises(ViolationError, match="a gradient is 1 updates stale"):
        check(Options(num_tickets=3, num_servers=1, pull="handled", limit=0, pushes_per_update=1))


def test_a_wait_for_those_who_wait_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def should_apply(state: UpdateState) -> bool:
        behind = [state.version + 1 - state._basis[worker] for worker in state._active]
        return state._is_complete() and state._staleness.may_advance(behind)

    monkeypatch.setattr(UpdateState, "should_apply", should_apply)
    with pytest.raises(ViolationError, match="somebody waits for ever"):
        check(Options(num_tickets=3, num_servers=1, pull="handled", limit=0, pushes_per_update=1))


def test_a_stop_that_forgets_what_is_accumulated(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(state: UpdateState) -> list[Arrival]:
        state._is_stopping = True
        state._group.clear()
        return []

    monkeypatch.setattr(UpdateState, "stop", stop)
    with pytest.raises(ViolationError, match="1 pushed, 0 applied, 0 dropped"):
        check(Options(num_tickets=1, may_stop=True))


def test_a_coordinator_that_ends_before_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpdateState, "is_finished", property(lambda self: self._is_stopping))
    with pytest.raises(ViolationError):
        check(Options(num_tickets=1, may_stop=True))


def hasty(work: LostWork) -> None:
    """Give a dead one's batches away before it is known who holds what."""
    work._have_rested |= work._live
    SETTLE(work)


def rests_at_once(work: LostWork, worker: int) -> bool:
    """Take a worker for resting that has yet to see an offer."""
    work._have_rested.add(worker)
    work._resting.add(worker)
    return True


def is_exhausted_for_one(work: LostWork) -> bool:
    """Let all go when one has found nothing more to do."""
    return not work._lost and work._cut is None and bool(work._live & work._resting)


SETTLE = LostWork._settle


@pytest.mark.parametrize(
    ("name", "mistake", "options", "expected"),
    [
        ("_settle", hasty, SURVIVED, "twice"),
        ("died", lambda work, worker, num_drawn: work._live.discard(worker), SURVIVED, "missing|for ever"),
        ("rests", rests_at_once, replace(SURVIVED, num_workers=2, num_tickets=3), "had finished|missing|for ever"),
        ("is_exhausted", property(is_exhausted_for_one), SURVIVED, "missing"),
        ("has_ended", property(lambda work: work._live <= work._resting | work._finished), SURVIVED, "for ever"),
    ],
)
def test_a_mistake_about_lost_work_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, mistake: Callable[..., Any], options: Options, expected: str
) -> None:
    monkeypatch.setattr(LostWork, name, mistake)
    with pytest.raises(ViolationError, match=expected):
        check(options)


def test_a_worker_that_is_woken_has_to_be_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpdateState, "resume", lambda self, worker: None)
    with pytest.raises(ViolationError, match="pushed after it had finished"):
        check(SURVIVED)
