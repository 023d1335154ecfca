"""Throughput of a cluster without computing gradients: the same protocol, decisions and batches, in seconds."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hpcasync.config.schema import Config
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.staleness import make_policy
from hpcasync.ps.protocol.updates import PushCounts, Update, UpdateState
from hpcasync.simulate.asynchronous import AsynchronousCluster
from hpcasync.simulate.cluster import ClusterConfig
from hpcasync.simulate.exchange import ExchangeOptions
from hpcasync.simulate.result import Throughput
from hpcasync.simulate.synchronous import SynchronousCluster
from hpcasync.simulate.times import MakeTimes
from hpcasync.simulate.timing import Costs, Usage
from hpcasync.simulate.workload import Workload

_WARMUP = 0.25
_FEWEST_STEPS, _MOST_STEPS = 12, 400
_WANTED_PUSHES = 20_000
_FEWEST_UPDATES = 8
# Servers are enough when more of them would not bring this much.
_WORTHWHILE = 0.02


def default_steps(num_workers: int) -> int:
    """Pushes of each worker that a simulation lasts."""
    return min(_MOST_STEPS, max(_FEWEST_STEPS, _WANTED_PUSHES // num_workers))


def measure_throughput(
    config: Config,
    cluster: ClusterConfig,
    workload: Workload,
    make_times: MakeTimes,
    *,
    num_steps: int | None = None,
) -> Throughput:
    """Simulate until each worker has pushed `num_steps` times on average; the first quarter is not counted.

    Args:
        num_steps: default: enough for the number of workers.
    """
    num_servers = max(1, config.num_servers)
    sizes, operations = workload.num_elements, workload.matrix_operations
    costs = Costs.of(config, cluster, make_times(cluster), num_servers, sizes, matrix_operations=operations)
    per_update = config.pushes_per_update(cluster.workers)
    num_pushes = cluster.workers * (num_steps or default_steps(cluster.workers))
    counter = _TokenCounter(workload, max(num_pushes, _FEWEST_UPDATES * per_update))
    simulated: AsynchronousCluster | SynchronousCluster
    if config.mode == "sync":
        simulated = SynchronousCluster(
            costs, counter, PushCounts(), num_local=config.accumulate.local, during_backward=config.precision != "fp16"
        )
    else:
        simulated = AsynchronousCluster(
            costs,
            counter,
            make_decisions(config, cluster.workers),
            ExchangeOptions.of(config),
        )
    counter.watch(simulated)
    simulated.run()
    return counter.result(config, cluster)


def make_decisions(
    config: Config, num_workers: int, counts: PushCounts | None = None, *, fresh_updates: int = 0
) -> UpdateState:
    """The coordinator's decisions, as a real run makes them."""
    return UpdateState(
        num_workers,
        config.pushes_per_update(num_workers),
        pull=config.pull,
        fresh_updates=fresh_updates,
        staleness=make_policy(config.staleness.limit, config.staleness.policy),
        counts=counts,
    )


def fewest_servers(measure: Callable[[int], Throughput], most: int, least: int = 1) -> Throughput:
    """The result with the fewest servers beyond which more bring less than 2 % of throughput."""
    results: dict[int, Throughput] = {}

    def rate(num_servers: int) -> float:
        if num_servers not in results:
            results[num_servers] = measure(num_servers)
        return results[num_servers].target_tokens_per_second

    best = least
    while best < most and rate(min(2 * best, most)) > rate(best) * (1 + _WORTHWHILE):
        best = min(2 * best, most)
    enough, low = rate(best) * (1 - _WORTHWHILE), max(best // 2, least - 1)
    while best - low > 1:
        middle = (low + best) // 2
        low, best = (low, middle) if rate(middle) >= enough else (middle, best)
    return results[best]


@dataclass(frozen=True)
class _Reading:
    """What had been done by some update."""

    now: float
    num_updates: int
    target_tokens: int
    compute_seconds: float
    usage: Usage


class _TokenCounter:
    """A program (`simulate.program`) that counts instead of computing."""

    parameters: Any = None

    def __init__(self, workload: Workload, num_pushes: int) -> None:
        self._batch_tokens = workload.batch_tokens
        self._num_pushes = num_pushes
        self._cluster: AsynchronousCluster | SynchronousCluster | None = None
        self._num_applied = self._num_updates = self._target_tokens = 0
        self._compute_seconds = 0.0
        self._staleness: Counter[int] = Counter()
        self._first: _Reading | None = None
        self._last: _Reading | None = None

    def watch(self, cluster: AsynchronousCluster | SynchronousCluster) -> None:
        self._cluster = cluster

    def ticket(self, number: int) -> int:
        return number

    def num_tokens(self, ticket: int) -> int:
        return self._batch_tokens[ticket % len(self._batch_tokens)]

    def gradient(
        self, worker: int, version: int, parameters: Any, tickets: tuple[int, ...], compute_seconds: float
    ) -> PushRecord:
        return PushRecord(version, sum(map(self.num_tokens, tickets)), 0.0, 0, compute_seconds, tickets)

    def accumulate(self, worker: int, record: PushRecord) -> None:
        pass

    def exchange(self) -> None:
        pass

    def discard(self) -> None:
        pass

    def apply(self, update: Update) -> None:
        pass

    def after_update(self, update: Update, now: float) -> None:
        assert self._cluster is not None
        self._num_updates += 1
        self._num_applied += len(update.pushes)
        self._target_tokens += update.num_tokens
        self._compute_seconds += sum(push.record.compute_seconds for push in update.pushes)
        if self._first is not None:
            self._staleness.update(update.staleness)
        is_warm = self._num_applied >= _WARMUP * self._num_pushes
        if self.should_stop() or (is_warm and self._first is None):
            usage = replace(self._cluster.usage)
            reading = _Reading(now, self._num_updates, self._target_tokens, self._compute_seconds, usage)
            self._first, self._last = self._first or reading, reading

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        pass

    def should_stop(self) -> bool:
        return self._num_applied >= self._num_pushes

    def result(self, config: Config, cluster: ClusterConfig) -> Throughput:
        """Rates between the end of the warm-up and the last update."""
        first, last = self._first, self._last
        assert first is not None and last is not None and last.now > first.now, "at least two updates"
        seconds = last.now - first.now
        of_workers = seconds * cluster.workers

        def spent(name: str) -> float:
            difference: float = getattr(last.usage, name) - getattr(first.usage, name)
            return difference

        num_links = 2 * -(-cluster.workers // cluster.network.workers_per_link)
        return Throughput(
            mode=config.mode,
            num_workers=cluster.workers,
            num_servers=config.num_servers,
            seconds=seconds,
            num_updates=last.num_updates - first.num_updates,
            target_tokens_per_second=(last.target_tokens - first.target_tokens) / seconds,
            efficiency=(last.compute_seconds - first.compute_seconds) / of_workers,
            waiting=spent("waiting") / of_workers,
            moving=spent("moving") / of_workers,
            server=spent("server") / seconds,
            to_server=spent("to_server") / seconds,
            from_server=spent("from_server") / seconds,
            worker_links=spent("worker_links") / (seconds * num_links),
            staleness=dict(sorted(self._staleness.items())),
            pull_retries=spent("num_pull_retries") / max(1, sum(self._staleness.values())),
        )
