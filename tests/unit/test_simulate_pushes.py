"""What becomes of every push in virtual time."""

from typing import Any

import pytest
from simulated_cluster import MODES, cluster_of, config_of

from hpcasync.config.schema import Config
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import PushCounts, Update
from hpcasync.simulate.asynchronous import AsynchronousCluster
from hpcasync.simulate.compute_time import ModelledTimes
from hpcasync.simulate.exchange import ExchangeOptions
from hpcasync.simulate.synchronous import SynchronousCluster
from hpcasync.simulate.throughput import make_decisions
from hpcasync.simulate.timing import Costs
from hpcasync.simulate.workload import push_and_pull_bytes


class Observed:
    """A program that notes what becomes of every ticket."""

    parameters = None

    def __init__(self, num_tickets: int, stop_after: int, rejected: int = -1) -> None:
        self.drawn: list[int] = []
        self.applied: list[int] = []
        self.dropped: list[int] = []
        self.num_accumulated = 0
        self._num_tickets, self._stop_after, self._rejected = num_tickets, stop_after, rejected

    def ticket(self, number: int) -> int | None:
        if number >= self._num_tickets:
            return None
        self.drawn.append(number)
        return number

    def num_tokens(self, ticket: int) -> int:
        return 50 + ticket % 7

    def gradient(
        self, worker: int, version: int, parameters: Any, tickets: tuple[int, ...], compute_seconds: float
    ) -> PushRecord:
        tokens = 0 if self._rejected in tickets else sum(map(self.num_tokens, tickets))
        return PushRecord(version, tokens, 0.0, 0, compute_seconds, tickets)

    def accumulate(self, worker: int, record: PushRecord) -> None:
        self.num_accumulated += 1

    def exchange(self) -> None:
        """It keeps no sums of hosts."""

    def discard(self) -> None:
        self.num_accumulated = 0

    def apply(self, update: Update) -> None:
        assert len(update.pushes) <= self.num_accumulated
        self.num_accumulated -= len(update.pushes)

    def after_update(self, update: Update, now: float) -> None:
        self.applied += [ticket for push in update.pushes for ticket in push.record.tickets]

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        self.dropped += record.tickets

    def should_stop(self) -> bool:
        return len(self.applied) >= self._stop_after


def run_observed(config: Config, program: Observed, workers: int = 4) -> PushCounts:
    cluster = cluster_of(workers)
    costs = Costs(cluster, ModelledTimes(cluster), 1, 1000, *push_and_pull_bytes(config, 1000))
    counts = PushCounts()
    decisions = make_decisions(config, workers, counts)
    AsynchronousCluster(costs, program, decisions, ExchangeOptions.of(config)).run()
    return counts


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "sync"])
@pytest.mark.parametrize("pull", ["latest", "added", "handled", "applied"])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("overlap", ["none", "push", "full"])
def test_every_batch_of_the_corpus_is_applied_once(mode: str, pull: str, slots: int, overlap: str) -> None:
    program = Observed(num_tickets=101, stop_after=10**9, rejected=33)
    counts = run_observed(config_of(mode, exchange={"pull": pull, "slots": slots, "overlap": overlap}), program)
    assert sorted(program.applied + program.dropped) == list(range(101))
    assert 33 in program.dropped
    assert counts.num_pushed == counts.num_applied + counts.num_dropped
    assert counts.num_dropped == 1
    assert sum(counts.staleness.values()) == counts.num_applied
    if pull == "applied" and overlap != "full":
        assert set(counts.staleness) == {0} or mode in ("async", "async-local", "async-combined")


def test_a_round_of_sync_is_dropped_as_a_whole() -> None:
    """As `AllreduceExchange` does it: the sum is spoilt."""
    program, cluster, counts = Observed(num_tickets=101, stop_after=10**9, rejected=33), cluster_of(4), PushCounts()
    costs = Costs(cluster, ModelledTimes(cluster), 1, 1000, *push_and_pull_bytes(config_of("sync"), 1000))
    SynchronousCluster(costs, program, counts, num_local=1).run()
    assert program.dropped == [32, 33, 34, 35]
    assert sorted(program.applied + program.dropped) == list(range(101))
    assert (counts.num_pushed, counts.num_applied, counts.num_dropped) == (101, 97, 4)


@pytest.mark.parametrize("mode", ["async", "async-global", "async-combined"])
@pytest.mark.parametrize("overlap", ["none", "push", "full"])
def test_pushes_are_conserved_when_training_is_stopped(mode: str, overlap: str) -> None:
    program = Observed(num_tickets=10**9, stop_after=60)
    counts = run_observed(config_of(mode, exchange={"overlap": overlap}), program)
    assert counts.num_pushed == counts.num_applied + counts.num_dropped
    assert 60 <= len(program.applied) < 70
    assert not set(program.applied) & set(program.dropped)
    assert len(program.applied) == len(set(program.applied))


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_limit_of_staleness_holds(limit: int) -> None:
    program = Observed(num_tickets=200, stop_after=10**9)
    config = config_of("async", staleness={"limit": limit, "policy": "wait"})
    counts = run_observed(config, program, workers=6)
    assert max(counts.staleness) <= limit
    assert counts.num_applied == 200
