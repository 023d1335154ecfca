"""The machines that run, with the content of a state of the model: events in, effects out, content back."""

from collections import deque
from functools import cache
from typing import Any

from hpcasync.ps.protocol.coordination import Coordination, Effect
from hpcasync.ps.protocol.lost_work import LostWork
from hpcasync.ps.protocol.lost_workers import LostWorkers
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.slots import SlotLedger
from hpcasync.ps.protocol.staleness import make_policy
from hpcasync.ps.protocol.tickets import TicketLedger, TicketSequence
from hpcasync.ps.protocol.updates import Arrival, UpdateState
from hpcasync.ps.protocol.working import Working
from protocol_model.options import Options
from protocol_model.world import Decisions, Survivors, Worker, World


def drive(options: Options, world: World, event: str, *args: Any, **kwargs: Any) -> tuple[World, tuple[Effect, ...]]:
    """Have the coordinator handle an event: the world with its new content, and the effects to be carried out."""
    decisions, survival, effects = _drive(options, world.decisions, world.survival, event, *args, **kwargs)
    return world._replace(decisions=decisions, survival=survival), effects


@cache
def _drive(
    options: Options, decisions: Decisions, survival: Survivors | None, event: str, *args: Any, **kwargs: Any
) -> tuple[Decisions, Survivors | None, tuple[Effect, ...]]:
    machine = _restore(options, decisions, survival)
    effects = tuple(getattr(machine, event)(*args, **kwargs))
    lost = None if machine.lost is None else _content_of_lost(machine.lost)
    return _content_of(options, machine.updates), lost, effects


@cache
def is_finished(options: Options, decisions: Decisions, survival: Survivors | None) -> bool:
    return _restore(options, decisions, survival).is_finished


def forget() -> None:
    """Others decide from now on (tests put mistakes into the machines)."""
    _drive.cache_clear()
    is_finished.cache_clear()


def ledger(options: Options, held: tuple[tuple[int, int], ...]) -> SlotLedger:
    """A server's slots with this content."""
    slots = SlotLedger(options.num_slots, sums_late=True, sums_hosts=options.hosts > 1)
    slots.held = list(held)
    return slots


def working(options: Options, worker: Worker) -> Working:
    """A worker's machine with this content."""
    machine = Working(
        options.num_slots, options.pull, may_lose_workers=options.survives, fresh_updates=options.fresh_updates
    )
    machine.num_pushed, machine.num_taken_offers = worker.announced, worker.seen
    machine.num_rests, machine.has_drawn_all = worker.rests, worker.has_drawn_all
    return machine


def record_of(version: int, num_tokens: int, tickets: tuple[int, ...] = ()) -> PushRecord:
    return PushRecord(version, num_tokens, 0.0, 0, 0.0, tickets)


def _restore(options: Options, decisions: Decisions, survival: Survivors | None) -> Coordination:
    lost = None if survival is None else _restore_lost(options, survival)
    return Coordination(_restore_updates(options, decisions), lost)


def _restore_updates(options: Options, decisions: Decisions) -> UpdateState:
    state = UpdateState(
        options.num_workers,
        options.pushes_per_update,
        pull=options.pull,
        fresh_updates=options.fresh_updates,
        staleness=make_policy(options.limit, options.policy),
        version=decisions.version,
    )
    state._untold = dict(decisions.untold)
    state._basis = list(decisions.basis)
    state._group = [
        Arrival(worker, sequence, record_of(version, tokens)) for worker, sequence, version, tokens in decisions.group
    ]
    state._active = set(decisions.active)
    state._num_received = list(decisions.received)
    state._is_stopping = decisions.is_stopping
    state.counts.num_pushed, state.counts.num_applied, state.counts.num_dropped = decisions.counts
    return state


def _content_of(options: Options, state: UpdateState) -> Decisions:
    group = tuple((a.worker, a.sequence, a.record.version, a.record.num_tokens) for a in state._group)
    counts = state.counts.num_pushed, state.counts.num_applied, state.counts.num_dropped
    untold = tuple(sorted(state._untold.items()))
    # Who does not wait does not ask: one value, so that the same states stay the same.
    basis = tuple(state._basis) if options.limit is not None and options.policy == "wait" else (0,) * len(state._basis)
    active, received = frozenset(state._active), tuple(state._num_received)
    return Decisions(state.version, group, active, received, state.is_stopping, counts, untold, basis)


def _restore_lost(options: Options, content: Survivors) -> LostWorkers:
    work = LostWork(options.num_workers, TicketSequence(), options.num_tickets)
    work._arrived = TicketLedger(content.low, content.above)
    work._last = list(content.last)
    work._live, work._finished = set(content.live), set(content.finished)
    work._resting, work._have_rested = set(content.resting), set(content.have_rested)
    work._cut, work._lost, work._offered = content.cut, deque(content.lost), dict(content.offered)
    survival = LostWorkers(work, lambda: ())
    survival._lost, survival._num_rests = set(content.let_go), dict(content.num_rests)
    survival._has_told = content.has_told
    return survival


def _content_of_lost(survival: LostWorkers) -> Survivors:
    work = survival.work
    return Survivors(
        work._arrived.low,
        tuple(work._arrived.above),
        tuple(work._last),
        frozenset(work._live),
        frozenset(work._finished),
        frozenset(work._resting),
        frozenset(work._have_rested),
        work._cut,
        tuple(work._lost),
        tuple(sorted(work._offered.items())),
        frozenset(survival._lost),
        tuple(sorted(survival._num_rests.items())),
        survival._has_told,
    )
