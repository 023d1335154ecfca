"""Links that carry one transfer after the other, and the time of an allreduce over a ring."""

from collections.abc import Generator, Sequence
from typing import Any

import simpy

from hpcasync.simulate.cluster import NetworkConfig

Waiting = Generator[simpy.Event, Any, None]


class FifoLink:
    """One direction of a link. Transfers are served in the order in which they ask.

    Attributes:
        busy_seconds: time in which it carried something, counted when a transfer begins.
    """

    def __init__(self, bandwidth: float) -> None:
        self._bandwidth = bandwidth
        self._free_at = 0.0
        self.busy_seconds = 0.0

    def reserve(self, arrival: float, num_bytes: float) -> tuple[float, float]:
        """Start and end, in seconds, of a transfer that is there at `arrival`."""
        seconds = num_bytes / self._bandwidth
        start = max(arrival, self._free_at)
        self._free_at = start + seconds
        self.busy_seconds += seconds
        return start, self._free_at


class Network:
    """The links between workers and servers.

    All servers are alike and get an equal share of every push and pull at the same time, so the links of one of them
    stand for all.
    """

    def __init__(self, env: simpy.Environment, network: NetworkConfig, num_workers: int, num_servers: int) -> None:
        self._env = env
        self._num_servers = num_servers
        self._per_link = network.workers_per_link
        self.latency = network.latency_seconds
        worker_bandwidth = network.worker_bandwidth or network.bandwidth
        num_links = -(-num_workers // self._per_link)
        self._from_workers = [FifoLink(worker_bandwidth) for _ in range(num_links)]
        self._to_workers = [FifoLink(worker_bandwidth) for _ in range(num_links)]
        self.to_server = FifoLink(network.bandwidth)
        self.from_server = FifoLink(network.bandwidth)

    @property
    def worker_links(self) -> Sequence[FifoLink]:
        """Both directions of every worker's link."""
        return [*self._from_workers, *self._to_workers]

    def push(self, worker: int, num_bytes: float, after: float = 0.0) -> Waiting:
        """Wait until so many bytes of a worker have arrived at the servers, and `after` seconds more."""
        arrival = yield from self.put(worker, num_bytes)
        yield self._env.timeout(arrival - self._env.now + after)

    def put(self, worker: int, num_bytes: float) -> Generator[simpy.Event, Any, float]:
        """Wait until a transfer to the servers has begun; returns when its last byte arrives, in seconds."""
        own = self._from_workers[worker // self._per_link]
        return (yield from self._carry(own, num_bytes, self.to_server, num_bytes / self._num_servers))

    def pull(self, worker: int, num_bytes: float, after: float = 0.0) -> Waiting:
        """Wait until so many bytes have come from the servers, and `after` seconds more."""
        own = self._to_workers[worker // self._per_link]
        arrival = yield from self._carry(self.from_server, num_bytes / self._num_servers, own, num_bytes)
        yield self._env.timeout(arrival - self._env.now + after)

    def exchange(self, sent_bytes: float, received_bytes: float) -> Waiting:
        """Wait until a server has sent so many bytes to others, and has received so many."""
        _, sent = self.from_server.reserve(self._env.now, sent_bytes)
        _, received = self.to_server.reserve(self._env.now, received_bytes)
        yield self._env.timeout(max(sent, received) + self.latency - self._env.now)

    def _carry(
        self, first: FifoLink, first_bytes: float, second: FifoLink, second_bytes: float
    ) -> Generator[simpy.Event, Any, float]:
        """Through two links without waiting in between for the whole: the second starts a latency after the first."""
        start, end = first.reserve(self._env.now, first_bytes)
        if start > self._env.now:
            yield self._env.timeout(start - self._env.now)
        _, second_end = second.reserve(self._env.now + self.latency, second_bytes)
        return max(end + self.latency, second_end)


def ring_allreduce_seconds(num_bytes: float, num_workers: int, network: NetworkConfig) -> float:
    """Time of a bandwidth-optimal ring: 2(W-1)/W · bytes / bandwidth + 2(W-1) · latency.

    Source: Patarasuk & Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (J. Parallel
    Distrib. Comput. 69).
    """
    bandwidth = network.worker_bandwidth or network.bandwidth
    steps = 2 * (num_workers - 1)
    return steps / num_workers * num_bytes / bandwidth + steps * network.latency_seconds
