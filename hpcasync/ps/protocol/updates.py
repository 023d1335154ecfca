"""The decisions of the protocol: which pushes form which update. No I/O, no clock, no tensors.

The coordinator (server 0) holds an `UpdateState` and tells the other servers what it decided, so that every shard
applies the same groups in the same order and there is one version number for all shards.

Method: Aji & Heafield 2019 (D19-5608): the sum of several asynchronous gradients makes one optimizer step.
"""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from hpcasync.choices import PullPolicy
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.staleness import Unbounded


@dataclass(frozen=True)
class Arrival:
    """A push that the coordinator has seen, numbered per worker from 1."""

    worker: int
    sequence: int
    record: PushRecord


@dataclass(frozen=True)
class Update:
    """A group of pushes that makes one optimizer step.

    Attributes:
        version: the version that the update publishes, equal to the number of updates so far.
        pushes: the group, in order of arrival.
        rate_factor: factor on the learning rate.
    """

    version: int
    pushes: tuple[Arrival, ...]
    rate_factor: float = 1.0

    @property
    def num_tokens(self) -> int:
        """Target tokens of the group: the effective batch."""
        return sum(push.record.num_tokens for push in self.pushes)

    @property
    def num_source_tokens(self) -> int:
        return sum(push.record.num_source_tokens for push in self.pushes)

    @property
    def loss_sum(self) -> float:
        """Loss summed over the target tokens of the group."""
        return sum(push.record.loss_sum for push in self.pushes)

    @property
    def tickets(self) -> tuple[int, ...]:
        return tuple(ticket for push in self.pushes for ticket in push.record.tickets)

    @property
    def staleness(self) -> list[int]:
        """For each push, version at apply minus version that it was computed from, in updates."""
        return [self.version - 1 - push.record.version for push in self.pushes]


def is_sound(round_: Sequence[Arrival]) -> bool:
    """Whether an update is made of what all workers of `sync` have summed: one bad gradient spoils the sum."""
    return bool(round_) and all(push.record.num_tokens for push in round_)


@dataclass
class PushCounts:
    """What became of the pushes. `num_pushed == num_applied + num_dropped` once the run has ended."""

    num_pushed: int = 0
    num_applied: int = 0
    num_dropped: int = 0
    staleness: Counter[int] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Pushes that wait to be applied are left out: a resumed run makes them anew."""
        staleness = {str(updates): number for updates, number in sorted(self.staleness.items())}
        return {"num_applied": self.num_applied, "num_dropped": self.num_dropped, "staleness": staleness}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PushCounts":
        applied, dropped = int(values["num_applied"]), int(values["num_dropped"])
        staleness = Counter({int(updates): int(number) for updates, number in values["staleness"].items()})
        return cls(applied + dropped, applied, dropped, staleness)


class UpdateState:
    """Which pushes form the next update, and when training is over.

    Args:
        pull: what workers wait for (`exchange.pull`). With applied a group can be complete before it is full.
        fresh_updates: up to this version a worker whose push is in the group waits for the update, while others still
            compute: gradients are fresh where learning is fastest.
        staleness: what to do about stale gradients. With `Wait`, workers must pull only after their last push has been
            told as handled (`tell`).
        version: number of updates made before (resume).
        counts: what became of the pushes before; counted on.
    """

    def __init__(
        self,
        num_workers: int,
        pushes_per_update: int,
        *,
        pull: PullPolicy = "handled",
        fresh_updates: int = 0,
        staleness: Unbounded | None = None,
        version: int = 0,
        counts: PushCounts | None = None,
    ) -> None:
        assert num_workers >= 1 and pushes_per_update >= 1
        self._pushes_per_update = pushes_per_update
        self._pull = pull
        self._fresh_updates = fresh_updates
        self._version = version
        self._group: list[Arrival] = []
        self._active = set(range(num_workers))
        self._num_received = [0] * num_workers
        self._staleness = Unbounded() if staleness is None else staleness
        self._basis = [version] * num_workers
        self._untold: dict[int, int] = {}
        self._is_stopping = False
        self.counts = PushCounts() if counts is None else counts

    @property
    def version(self) -> int:
        return self._version

    @property
    def is_stopping(self) -> bool:
        return self._is_stopping

    def num_received(self, worker: int) -> int:
        return self._num_received[worker]

    def is_settled(self, worker: int) -> bool:
        """Whether all pushes of this worker seen so far have been applied or dropped."""
        return all(push.worker != worker for push in self._group)

    def receive(self, arrival: Arrival) -> bool:
        """Take note of a push; return whether it joins the group (else it is dropped).

        A push without tokens is a gradient that its worker rejected (not finite): it is counted, never applied. So is
        one that the staleness policy refuses.
        """
        assert arrival.worker in self._active, f"worker {arrival.worker} pushed after it had finished"
        assert arrival.sequence == self._num_received[arrival.worker] + 1, "pushes of a worker are seen in order, once"
        assert arrival.record.version <= self._version, "a gradient cannot come from a version that is not there yet"
        self._num_received[arrival.worker] += 1
        self.counts.num_pushed += 1
        self._untold[arrival.worker] = arrival.sequence
        # The version does not change between the arrival of a push and the update that applies it.
        is_accepted = self._staleness.accepts(self._version - arrival.record.version)
        if self._is_stopping or arrival.record.num_tokens == 0 or not is_accepted:
            self.counts.num_dropped += 1
            return False
        self._group.append(arrival)
        return True

    def finish(self, worker: int) -> None:
        """This worker pushes nothing more, unless it resumes."""
        self._active.discard(worker)

    def resume(self, worker: int) -> None:
        """A worker that had finished pulls the newest version and computes again."""
        self._active.add(worker)
        self._basis[worker] = self._version

    def stop(self) -> list[Arrival]:
        """End training: nothing more is applied. Returns what was accumulated, and is dropped."""
        self._is_stopping = True
        dropped, self._group = self._group, []
        self.counts.num_dropped += len(dropped)
        return dropped

    def tell(self) -> list[tuple[int, int]]:
        """The pushes (worker, sequence) that have become handled: their workers may pull and compute the next gradient.

        None while a complete group waits for slower workers.
        """
        if self._is_complete() and not self._is_stopping:
            return []
        return self._tell(self._untold.keys() - self._held_back())

    def tell_added(self) -> list[tuple[int, int]]:
        """The pushes whose workers may go on while the complete group that they are in is made an update of."""
        is_fresh = self._version < self._fresh_updates
        if self._pull != "added" or is_fresh or not self._staleness.may_advance((1,)):
            return []
        return self._tell(self._untold.keys() & {push.worker for push in self._group})

    def _tell(self, workers: Set[int]) -> list[tuple[int, int]]:
        told = sorted((worker, sequence) for worker, sequence in self._untold.items() if worker in workers)
        for worker, _ in told:
            self._basis[worker] = self._version
            del self._untold[worker]
        return told

    def _held_back(self) -> set[int]:
        """Workers that wait for the update that their push will be part of: none where nobody would complete it."""
        if self._version >= self._fresh_updates or self._is_stopping:
            return set()
        waiting = self._untold.keys() & {push.worker for push in self._group}
        return waiting if self._active - waiting else set()

    def should_apply(self) -> bool:
        """Whether the group is complete, and nobody has to be waited for.

        A group that can grow no more is complete too: at the end of the corpus, and where every worker that is still
        active waits for its push to be applied.
        """
        waiting = self._untold.keys() | self._waiting()
        computing = (worker for worker in self._active if worker not in waiting)
        behind = (self._version + 1 - self._basis[worker] for worker in computing)  # looked at only where it matters
        return self._is_complete() and self._staleness.may_advance(behind)

    def _is_complete(self) -> bool:
        if not self._group:
            return False
        if len(self._group) >= self._pushes_per_update:
            return True
        return self._active <= self._waiting()

    def _waiting(self) -> set[int]:
        """Workers that go on only when their push has been applied."""
        return {push.worker for push in self._group} if self._pull == "applied" else set()

    def apply(self) -> Update:
        """Close the group: the next version."""
        assert self.should_apply()
        self._version += 1
        pushes = tuple(self._group)
        stale = [(self._version - 1 - push.record.version, push.record.num_tokens) for push in pushes]
        update = Update(self._version, pushes, self._staleness.rate_factor(stale))
        for worker in self._waiting():
            self._basis[worker] = self._version
        self._group.clear()
        self.counts.num_applied += len(update.pushes)
        self.counts.staleness.update(update.staleness)
        return update

    @property
    def is_finished(self) -> bool:
        """Whether every worker has finished and nothing waits to be applied."""
        return not self._active and not self._group
