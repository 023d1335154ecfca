"""The coordinator's decisions, made by the real `ps.protocol.updates.UpdateState` and remembered."""

from functools import cache

from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.staleness import make_policy
from hpcasync.ps.protocol.updates import Arrival, UpdateState
from protocol_model.world import Decisions, Options, Order, require


@cache
def decide(options: Options, decisions: Decisions, event: str, order: Order, version: int) -> Decisions:
    """The decisions after an event, made by an `UpdateState` with this content."""
    state = restore(options, decisions)
    if event == "receive":
        tokens = options.num_tokens(order.worker, order.sequence)
        state.receive(Arrival(order.worker, order.sequence, PushRecord(version, tokens, 0.0, 0, 0.0, ())))
    elif event == "apply":
        update = state.apply()
        require(update.version == decisions.version + 1, "versions go up by one")
        require(min(update.staleness) >= 0, "a gradient is older than its parameters")
        if options.limit is not None and options.policy != "scale":
            require(max(update.staleness) <= options.limit, f"a gradient is {max(update.staleness)} updates stale")
    elif event == "tell":
        state.tell()
    elif event == "finish":
        state.finish(order.worker)
    else:
        state.stop()
    return content_of(options, state)


def content_of(options: Options, state: UpdateState) -> Decisions:
    """What is in an `UpdateState`."""
    group = tuple((a.worker, a.sequence, a.record.version, a.record.num_tokens) for a in state._group)
    counts = state.counts.num_pushed, state.counts.num_applied, state.counts.num_dropped
    untold = tuple(sorted(state._untold.items()))
    # Who does not wait does not ask: one value, so that the same states stay the same.
    basis = tuple(state._basis) if options.limit is not None and options.policy == "wait" else (0,) * len(state._basis)
    active, received = frozenset(state._active), tuple(state._num_received)
    return Decisions(state.version, group, active, received, state.is_stopping, counts, untold, basis)


@cache
def should_apply(options: Options, decisions: Decisions) -> bool:
    return restore(options, decisions).should_apply()


@cache
def is_finished(options: Options, decisions: Decisions) -> bool:
    return restore(options, decisions).is_finished


def restore(options: Options, decisions: Decisions) -> UpdateState:
    """An `UpdateState` with this content."""
    state = UpdateState(
        options.num_workers,
        options.pushes_per_update,
        pull_applied=options.pull == "applied",
        staleness=make_policy(options.limit, options.policy),
        version=decisions.version,
    )
    state._untold = dict(decisions.untold)
    state._basis = list(decisions.basis)
    state._group = [
        Arrival(worker, sequence, PushRecord(version, tokens, 0.0, 0, 0.0, ()))
        for worker, sequence, version, tokens in decisions.group
    ]
    state._active = set(decisions.active)
    state._num_received = list(decisions.received)
    state._is_stopping = decisions.is_stopping
    state.counts.num_pushed, state.counts.num_applied, state.counts.num_dropped = decisions.counts
    return state
