"""The protocol in every interleaving of its atomic steps, and the checker against mistakes put into it on purpose.

Invariants: no push is lost or doubled; versions go up by one; a pull is one version of all shards; a slot is not
written again before it is consumed; every shard applies the same groups; nobody waits for ever; every run ends. Where
workers are survived: each batch is done once, whoever dies at whichever step.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from protocol_model import Options, Report, ViolationError, check

from hpcasync.ps.protocol.lost_work import LostWork
from hpcasync.ps.protocol.updates import Arrival, UpdateState

FAR = frozenset({0})
SMALL = [
    Options(num_tickets=3),
    Options(num_tickets=3, num_slots=1),
    Options(num_tickets=2, may_stop=True),
    Options(num_tickets=2, deaths=1),
    Options(num_tickets=2, pushes_per_update=1, num_servers=1, may_stop=True, deaths=1),
    Options(num_tickets=3, num_servers=1, may_stop=True, rejected=frozenset({(0, 1), (1, 2)})),
    Options(num_tickets=4, pull="applied"),
    Options(num_tickets=3, pull="applied", may_stop=True, deaths=1),
    Options(num_tickets=3, pull="applied", may_stop=True, rejected=frozenset({(0, 1)}), pushes_per_update=3),
    Options(num_tickets=3, pull="handled", deaths=1),
    Options(num_tickets=3, pull="handled", may_stop=True, rejected=frozenset({(0, 1)}), pushes_per_update=1),
    Options(num_tickets=4, num_servers=1, pull="handled", limit=0, pushes_per_update=1),
    Options(num_tickets=3, num_servers=1, pull="handled", limit=1, pushes_per_update=1, may_stop=True, deaths=1),
    Options(num_tickets=4, pull="applied", limit=0, pushes_per_update=1, rejected=frozenset({(0, 1)})),
    Options(num_tickets=4, num_servers=1, pull="applied", limit=0, may_stop=True),
    Options(num_tickets=4, num_servers=1, limit=0, policy="drop", pushes_per_update=1),
    Options(num_tickets=1, num_servers=3),
    Options(num_tickets=2, reads_idle=True),
    Options(num_tickets=2, num_servers=1, may_stop=True, in_place=True, reads_idle=True),
    Options(num_tickets=3, num_servers=1, pushes_per_update=1, far=frozenset({0})),
    Options(num_tickets=2, pushes_per_update=1, far=frozenset({1})),
    Options(num_tickets=2, far=frozenset({0, 1}), deaths=1, pull="handled"),
    Options(num_tickets=4, num_workers=1, pushes_per_update=1, num_slots=1, may_stop=True),
    Options(num_tickets=3, num_slots=1, in_place=True, rejected=frozenset({(0, 1)}), num_servers=1),
    Options(num_tickets=2, in_place=True, may_stop=True, deaths=1, num_servers=1),
    Options(num_tickets=4, num_workers=1, pushes_per_update=1, num_slots=1, may_stop=True, in_place=True),
    Options(num_tickets=3, pull="handled", in_place=True, deaths=1, num_slots=1, num_servers=1),
    Options(num_tickets=4, num_workers=1, num_slots=1, in_place=True, ahead=True),
    Options(num_tickets=4, num_workers=1, num_slots=1, may_stop=True, in_place=True, ahead=True, spare=2),
    Options(num_tickets=3, num_servers=1, num_slots=1, may_stop=True, in_place=True, ahead=True, spare=2),
]
LARGE = [
    Options(num_tickets=3, may_stop=True, deaths=1),
    Options(num_tickets=4),
    Options(num_tickets=2, pushes_per_update=1, may_stop=True, deaths=1),
    Options(num_tickets=3, pushes_per_update=1),
    Options(num_tickets=2, num_servers=3),
    Options(num_tickets=2, num_workers=3, num_servers=1, may_stop=True),
    Options(num_tickets=6, pull="applied", may_stop=True, deaths=2),
    Options(num_tickets=4, pull="handled", may_stop=True, deaths=1),
    Options(num_tickets=3, pushes_per_update=1, far=frozenset({0, 1})),
    Options(num_tickets=3, pushes_per_update=1, far=frozenset({1})),
    Options(num_tickets=2, pushes_per_update=1, far=frozenset({1}), may_stop=True),
    Options(num_tickets=2, in_place=True, may_stop=True, deaths=1),
    Options(num_tickets=3, in_place=True, num_slots=1),
    Options(num_tickets=2, in_place=True, num_slots=1, ahead=True, may_stop=True),
    Options(num_tickets=3, in_place=True, num_slots=1, ahead=True, spare=2, num_servers=1, deaths=1),
]
AHEAD = Options(num_tickets=3, num_slots=1, in_place=True, ahead=True)
# Workers that die are survived; their batches are done by the others.
SURVIVED = replace(Options(), survives=True, deaths=1, num_servers=1, num_tickets=2, pull="handled")
SMALL_SURVIVED = [
    SURVIVED,
    replace(SURVIVED, num_local=2),
    replace(SURVIVED, pull="applied"),
    replace(SURVIVED, pull="latest", pushes_per_update=1, num_tickets=1),
    replace(SURVIVED, rejected=frozenset({(0, 1), (1, 1)})),
    replace(SURVIVED, may_stop=True, num_tickets=1),
    replace(SURVIVED, deaths=2, num_tickets=1),
    replace(SURVIVED, num_servers=2, num_tickets=1),
    replace(SURVIVED, num_workers=1, num_slots=1, num_tickets=3),
    replace(SURVIVED, in_place=True, num_slots=1, num_local=2, num_tickets=1),
]
LARGE_SURVIVED = [
    replace(SURVIVED, num_tickets=3),
    replace(SURVIVED, num_tickets=3, num_local=2),
    replace(SURVIVED, pull="latest"),
    replace(SURVIVED, may_stop=True),
    replace(SURVIVED, deaths=2),
    replace(SURVIVED, num_servers=2),
    replace(SURVIVED, num_workers=3, num_tickets=1),
    replace(SURVIVED, num_workers=3, num_tickets=1, deaths=2),
    replace(SURVIVED, num_workers=3),
    replace(SURVIVED, num_workers=3, num_local=2),
]


def describe(options: Options) -> str:
    changed = [f"{key}={value}" for key, value in vars(options).items() if value != getattr(Options(), key)]
    return ",".join(changed) or "default"


@pytest.mark.parametrize("options", [*SMALL, *SMALL_SURVIVED], ids=describe)
def test_every_interleaving(options: Options) -> None:
    report = check(options)
    assert report.num_final > 0 and report.num_transitions > report.num_states > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [*LARGE, *LARGE_SURVIVED], ids=describe)
def test_every_interleaving_of_larger_jobs(options: Options) -> None:
    assert check(options).num_final > 0


def test_the_size_of_the_smallest_job_is_what_it_was() -> None:
    """A model that loses steps by accident would find nothing and be quick about it."""
    assert check(Options(num_tickets=1)) == Report(num_states=1002, num_transitions=2472, num_final=2)


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
    ],
)
def test_a_seeded_mistake_is_found(bug: str, options: Options, expected: str) -> None:
    with pytest.raises(ViolationError, match=expected) as caught:
        check(replace(options, bugs=frozenset({bug})))
    assert "after: worker" in str(caught.value), "the story is told"


def test_a_worker_that_waits_for_a_full_group_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UpdateState, "should_apply", lambda self: len(self._group) >= self._pushes_per_update)
    with pytest.raises(ViolationError, match="somebody waits for ever"):
        check(Options(num_tickets=2, pull="applied", pushes_per_update=3))


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
