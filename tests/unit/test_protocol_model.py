"""The protocol in every interleaving of its atomic steps, and the checker against mistakes put into it on purpose.

Invariants: no push is lost or doubled; versions go up by one; a pull is one version of all shards; a slot is not
written again before it is consumed; every shard applies the same groups; nobody waits for ever; every run ends. Where
workers are survived: each batch is done once, whoever dies at whichever step. On GPUs: what is summed is the gradient
that was announced, whole; what is computed with is one version, whole, until the gradient is there. Where hosts sum:
each shard's sum is that of the group.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from protocol_model import Options, Report, ViolationError, check

from hpcasync.ps.protocol import slots
from hpcasync.ps.protocol.host_group import Exchange, HostGroup
from hpcasync.ps.protocol.lost_work import LostWork
from hpcasync.ps.protocol.orders import Kind
from hpcasync.ps.protocol.slots import Step
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
# Vectors, slots and buffers on GPUs, whose streams do what they were asked for later.
STREAMS = Options(num_servers=1, num_tickets=2, pushes_per_update=1, streams=True)
ALONE = replace(STREAMS, num_workers=1, num_tickets=3)
SMALL_STREAMS = [
    STREAMS,
    replace(STREAMS, num_tickets=1, num_servers=2),
    replace(STREAMS, num_tickets=1, in_place=True, may_stop=True, deaths=1),
    replace(STREAMS, in_place=True, pushes_per_update=2),
    replace(STREAMS, num_tickets=1, rejected=frozenset({(0, 1)}), pull="handled"),
    replace(ALONE, num_servers=2, in_place=True),
    replace(ALONE, num_servers=2, num_tickets=2, far=frozenset({1})),
    replace(ALONE, num_tickets=4, pushes_per_update=3, reads_idle=True, rejected=frozenset({(0, 2)})),
    replace(ALONE, num_slots=1, in_place=True, ahead=True, rejected=frozenset({(0, 2)})),
    replace(ALONE, in_place=True, ahead=True, spare=2, may_stop=True),
]
LARGE_STREAMS = [
    replace(STREAMS, num_servers=2),
    replace(STREAMS, num_servers=2, in_place=True),
    replace(STREAMS, num_tickets=3, pushes_per_update=2, num_slots=1),
    replace(STREAMS, in_place=True, may_stop=True, deaths=1),
    replace(STREAMS, pull="applied", may_stop=True),
    replace(STREAMS, in_place=True, num_slots=1, ahead=True, spare=2),
    replace(ALONE, num_servers=2, num_tickets=4),
    replace(ALONE, num_servers=2, far=frozenset({0, 1})),
    replace(ALONE, num_servers=2, num_tickets=4, in_place=True, ahead=True, spare=2, may_stop=True),
]
# A host's gradients are summed there before they leave it.
HOSTS = Options(num_tickets=2, pushes_per_update=1, in_place=True, hosts=2)
IN_TURN = replace(HOSTS, pull="applied")
SMALL_HOSTS = [
    IN_TURN,
    replace(IN_TURN, streams=True),
    replace(HOSTS, pushes_per_update=2),
    replace(HOSTS, num_tickets=1, may_stop=True),
]
LARGE_HOSTS = [
    HOSTS,
    replace(HOSTS, streams=True),
    replace(HOSTS, num_tickets=3, pushes_per_update=2, num_slots=1),
    replace(HOSTS, pushes_per_update=2, may_stop=True, deaths=1),
    replace(HOSTS, num_tickets=3, pushes_per_update=2, pull="applied", rejected=frozenset({(1, 1)})),
    replace(HOSTS, num_tickets=1, num_servers=3),
    replace(HOSTS, num_tickets=1, num_servers=3, num_workers=3, hosts=3),
    replace(HOSTS, num_workers=1, num_servers=3, num_tickets=3),
]
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


@pytest.mark.parametrize("options", [*SMALL, *SMALL_SURVIVED, *SMALL_STREAMS, *SMALL_HOSTS], ids=describe)
def test_every_interleaving(options: Options) -> None:
    report = check(options)
    assert report.num_final > 0 and report.num_transitions > report.num_states > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [*LARGE, *LARGE_SURVIVED, *LARGE_STREAMS, *LARGE_HOSTS], ids=describe)
def test_every_interleaving_of_larger_jobs(options: Options) -> None:
    report = check(options)
    print(report)
    assert report.num_final > 0


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
