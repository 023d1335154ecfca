"""What the coordinator did, and every version computed again from it in numpy.

Adam is as in its paper (Kingma & Ba 2015, algorithm 1).
"""

import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from quadratic import (
    COMPENSATION,
    FIRST_VERSION,
    NUM_ELEMENTS,
    OPTIMIZER,
    TOPK,
    Scenario,
    Vector,
    gradient_of,
    num_tokens,
    rate,
    rate_factor,
    start_vector,
)

from hpcasync.comm.shards import Shard, cut_shards
from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.ps.protocol.updates import PushCounts, Update


@dataclass
class Recording:
    """What the coordinator did (`ps.protocol.observer`)."""

    scenario: Scenario
    updates: list[Update] = field(default_factory=list)
    dropped: list[PushRecord] = field(default_factory=list)
    snapshots: dict[str, Vector] = field(default_factory=dict)
    saved: Counter[str] = field(default_factory=Counter)
    started: list[SavedShard] = field(default_factory=list)
    num_stale: int = 0
    num_arrived: int = 0  # since the last update

    def learning_rate(self, update: Update) -> float:
        return rate(update.version)

    def after_update(self, update: Update, learning_rate: float) -> SaveRequest | None:
        assert learning_rate == rate(update.version) * rate_factor(self.scenario, update)
        self.updates.append(update)
        self.num_arrived = 0
        is_due = update.version % 3 == 0
        return SaveRequest(f"u{update.version}", snapshot=True, checkpoint=True) if is_due else None

    def after_arrival(self, worker: int) -> None:
        self.num_arrived += 1

    def after_finish(self, worker: int) -> None:
        pass

    def after_loss(self, worker: int, *, is_last: bool) -> None:
        raise AssertionError("nobody dies here")

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        self.dropped.append(record)
        if is_stale and record.num_tokens:
            self.num_stale += 1

    def save_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        self.snapshots[request.name] = vector.numpy()

    def shard_saved(self, saved: SavedShard) -> None:
        self.saved[saved.name] += 1

    def should_stop(self) -> bool:
        is_due = bool(self.scenario.stop_after) and len(self.updates) >= self.scenario.stop_after
        return is_due and (self.num_arrived > 0 or not self.scenario.stop_in_group)

    def final_request(self) -> SaveRequest | None:
        return None

    def save_shard(self, name: str, server_index: int, shard: Shard, tensors: dict[str, torch.Tensor]) -> None:
        assert tensors["parameters"].numel() == shard.size and tensors["optimizer.exp_avg"].numel() == shard.size
        self.started.append(SavedShard(name, f"shard-{server_index}"))

    def poll(self) -> list[SavedShard]:
        """Half of the saves take until the end of the run."""
        return [self.started.pop()] if len(self.started) > 1 else []

    def wait(self) -> list[SavedShard]:
        done, self.started = self.started, []
        return done


def as_pulled(scenario: Scenario, parameters: Vector) -> Vector:
    return rounded(parameters) if scenario.parameters == "bf16" else parameters


def ahead(scenario: Scenario, update: Update, before: Vector, after: Vector) -> Vector:
    """What is published of a version: further on along the step that made it."""
    steps = scenario.lookahead * sum(update.staleness) / len(update.staleness)
    return np.asarray(after + np.float32(steps) * (after - before), np.float32)


def rounded(values: Vector) -> Vector:
    return torch.from_numpy(values).to(torch.bfloat16).float().numpy()


class Sender:
    """What a worker's gradients are by the time they arrive."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._residual = np.zeros(NUM_ELEMENTS, np.float32)

    def send(self, gradient: Vector) -> Vector:
        if self._scenario.gradients == "bf16":
            return rounded(gradient)
        if self._scenario.gradients == "fp32":
            return gradient
        self._residual += gradient
        sent = np.zeros_like(gradient)
        for shard in cut_shards(NUM_ELEMENTS, self._scenario.num_servers):
            part = self._residual[shard.start : shard.stop]
            threshold = np.sort(np.abs(part))[-round(TOPK * shard.size)]
            sent[shard.start : shard.stop] = np.where(np.abs(part) >= threshold, part, 0)
        self._residual -= sent
        return sent


def replay(scenario: Scenario, updates: list[Update]) -> tuple[dict[int, Vector], dict[int, Vector]]:
    """Every version, computed from the groups alone; and what workers get of it."""
    versions = {FIRST_VERSION: start_vector()}
    pulled = {FIRST_VERSION: as_pulled(scenario, start_vector())}
    first, second = np.zeros(NUM_ELEMENTS), np.zeros(NUM_ELEMENTS)
    (beta1, beta2), clip = OPTIMIZER.betas, OPTIMIZER.clip_norm
    senders = [Sender(scenario) for _ in range(scenario.num_workers)]
    for number, update in enumerate(updates, start=1):
        now = versions[update.version - 1]
        total = np.zeros(NUM_ELEMENTS)
        for push in update.pushes:
            (ticket,) = push.record.tickets
            then = versions[push.record.version]
            sent = senders[push.worker].send(gradient_of(scenario, ticket, pulled[push.record.version]))
            total += sent
            if scenario.is_compensated:
                total += COMPENSATION / num_tokens(ticket) * sent**2 * (now - then)
        mean = total / update.num_tokens
        mean *= min(1.0, clip / (float(np.linalg.norm(mean)) + 1e-6))
        first = beta1 * first + (1 - beta1) * mean
        second = beta2 * second + (1 - beta2) * mean**2
        numerator = first / (1 - beta1**number)
        if OPTIMIZER.nesterov:
            numerator = beta1 * numerator + (1 - beta1) * mean
        step = numerator / (np.sqrt(second / (1 - beta2**number)) + OPTIMIZER.eps)
        learning_rate = rate(update.version) * rate_factor(scenario, update)
        after = versions[update.version] = (now - learning_rate * step).astype(np.float32)
        pulled[update.version] = as_pulled(scenario, ahead(scenario, update, now, after))
    return versions, pulled


def check(
    scenario: Scenario,
    recording: Recording,
    counts: PushCounts,
    num_pushed: list[int],
    versions: dict[int, Vector],
    final: Vector,
) -> None:
    updates = recording.updates
    pushes = [push for update in updates for push in update.pushes]
    assert [update.version for update in updates] == list(range(FIRST_VERSION + 1, FIRST_VERSION + 1 + len(updates)))
    assert counts.num_pushed == sum(num_pushed) == counts.num_applied + counts.num_dropped, (counts, num_pushed)
    assert counts.num_applied == len(pushes)
    assert counts.num_dropped == len(recording.dropped) >= scenario.stop_in_group
    assert counts.staleness == Counter(stale for update in updates for stale in update.staleness)
    seen = Counter((push.worker, push.sequence) for push in pushes)
    assert not seen or max(seen.values()) == 1
    tickets = Counter(itertools.chain.from_iterable(push.record.tickets for push in pushes))
    assert not tickets or max(tickets.values()) == 1
    rejected = Counter(ticket for record in recording.dropped if not record.num_tokens for ticket in record.tickets)
    if scenario.stop_after:
        assert len(updates) == scenario.stop_after
    else:
        stale = Counter(record.tickets[0] for record in recording.dropped if record.num_tokens)
        assert tickets + rejected + stale == Counter(range(scenario.num_tickets))
        assert set(rejected) == scenario.rejected
        assert counts.num_dropped == len(scenario.rejected) + recording.num_stale
        assert not recording.num_stale or scenario.policy == "drop"
    if scenario.limit is not None and scenario.policy != "scale":
        assert max(counts.staleness, default=0) <= scenario.limit, counts
    check_groups(scenario, updates)
    last = versions[updates[-1].version if updates else FIRST_VERSION]
    np.testing.assert_allclose(final, last, rtol=1e-4, atol=1e-5)
    for name, vector in recording.snapshots.items():
        if name != "final":
            np.testing.assert_allclose(vector, versions[int(name[1:])], rtol=1e-4, atol=1e-5, err_msg=name)
    due = [name for name in recording.snapshots if name != "final" or updates]
    assert recording.saved == Counter({name: scenario.num_servers for name in due}), recording.saved


def check_groups(scenario: Scenario, updates: list[Update]) -> None:
    sizes = [len(update.pushes) for update in updates]
    if not sizes:
        return
    most = scenario.pushes_per_update
    if is_applied := scenario.pull == "applied":
        most = min(most, scenario.num_workers)
        assert all(len({push.worker for push in update.pushes}) == len(update.pushes) for update in updates)
        assert all(stale == 0 for update in updates for stale in update.staleness) or most < scenario.num_workers
    if scenario.pull == "handled":
        check_handled(updates)
    if is_applied and most == scenario.num_workers:
        # Near the end workers finish one after the other, and groups get smaller.
        assert sizes == sorted(sizes, reverse=True) and sizes[0] == most
    elif scenario.limit is not None and scenario.policy == "wait":
        # A group that waits takes in what arrives meanwhile, at most one push of every worker.
        assert all(most <= size <= most + scenario.num_workers for size in sizes[:-1]), sizes
    else:
        assert all(size == most for size in sizes[:-1]) and sizes[-1] <= most, sizes


def check_handled(updates: list[Update]) -> None:
    """A worker whose push completed an update computes its next gradient from that version or a later one."""
    completed = {(update.pushes[-1].worker, update.pushes[-1].sequence): update.version for update in updates}
    for push in itertools.chain.from_iterable(update.pushes for update in updates):
        assert push.record.version >= completed.get((push.worker, push.sequence - 1), 0)
