"""Clusters of several sizes: synchronous training beside asynchronous training of the same effective batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hpcasync.config.schema import Config
from hpcasync.simulate.cluster import ClusterConfig
from hpcasync.simulate.hosts import fewest_servers_of_hosts
from hpcasync.simulate.result import Throughput
from hpcasync.simulate.throughput import fewest_servers, measure_throughput
from hpcasync.simulate.times import MakeTimes
from hpcasync.simulate.workload import Workload

MOST_SERVERS = 256


@dataclass(frozen=True)
class Comparison:
    """Both modes on as many workers; async-global with an update of as many gradients."""

    sync: Throughput
    asynchronous: Throughput

    @property
    def speedup(self) -> float:
        """Target tokens per second, asynchronous over synchronous."""
        return self.asynchronous.target_tokens_per_second / self.sync.target_tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"sync": self.sync.to_dict(), "async-global": self.asynchronous.to_dict(), "speedup": self.speedup}


def compare_sizes(
    config: Config,
    cluster: ClusterConfig,
    workload: Workload,
    make_times: MakeTimes,
    sizes: Sequence[int],
    num_steps: int | None = None,
) -> Iterator[Comparison]:
    """For each number of workers both modes, async-global with as many servers as are worth while."""
    for num_workers in sizes:
        of_size = cluster.changed(workers=num_workers)
        sync = with_mode(config, "sync")
        asynchronous = with_mode(config, "async-global")
        yield Comparison(
            measure_throughput(sync, of_size, workload, make_times, num_steps=num_steps),
            search_servers(asynchronous, of_size, workload, make_times, num_steps),
        )


def search_servers(
    config: Config, cluster: ClusterConfig, workload: Workload, make_times: MakeTimes, num_steps: int | None = None
) -> Throughput:
    """The result with as many servers as are worth while, at most one per worker."""

    def measure(num_servers: int) -> Throughput:
        return measure_throughput(config.with_servers(num_servers), cluster, workload, make_times, num_steps=num_steps)

    least = fewest_servers_of_hosts(config, cluster)
    return fewest_servers(measure, max(least, min(cluster.workers, MOST_SERVERS)), least)


def with_mode(config: Config, mode: str) -> Config:
    """The configuration in sync or async-global, one update for as many gradients as there are workers."""
    accumulate = config.accumulate.model_copy(update={"local": 1, "global_": "workers"})
    return config.model_copy(update={"mode": mode, "accumulate": accumulate})
