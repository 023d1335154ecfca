"""The times of one cluster and one model, and how long each resource was busy."""

import math
from dataclasses import dataclass

from hpcasync.config.schema import Config
from hpcasync.simulate.cluster import ClusterConfig
from hpcasync.simulate.compute_time import ComputeTimes
from hpcasync.simulate.hosts import Hosts, hosts_of
from hpcasync.simulate.workload import push_and_pull_bytes, sum_bytes

# Of `comm.waiting.Backoff`, which cannot be imported without MPI: each sleep is longer than the last. (A server that
# has waited for more than a tenth of a second sleeps a hundredth of that, up to 5 ms: left out here.)
_LONGEST_SLEEP_SECONDS = 1e-3
_SLEEP_GROWTH_SECONDS = 2e-5
# A backward pass makes two products for each one of the forward pass: with respect to inputs and to weights.
BACKWARD_SHARE = 2 / 3


def polling_delay(waited_seconds: float) -> float:
    """How much later, on average, a rank that has waited so long sees what it waited for: half of its present sleep.

    Sleeps of g, 2g, 3g, … add up to t when the last one is sqrt(2 g t).
    """
    return min(_LONGEST_SLEEP_SECONDS, math.sqrt(2 * _SLEEP_GROWTH_SECONDS * waited_seconds)) / 2


@dataclass(frozen=True)
class Costs:
    """What moves and what is computed per update.

    Attributes:
        cluster: latencies and rates.
        times: of the workers' computation.
        num_servers: servers that share the parameters equally; at least 1.
        num_elements: length of the flat parameter vector.
        push_bytes, pull_bytes: of the whole vector, as it travels.
        matrix_operations: of Muon's iterations at an update.
        hosts: that sum what is pushed there; None: each push travels by itself.
        sum_bytes: of hosts' sums, likewise.
    """

    cluster: ClusterConfig
    times: ComputeTimes
    num_servers: int
    num_elements: int
    push_bytes: float
    pull_bytes: float
    matrix_operations: int = 0
    hosts: Hosts | None = None
    sum_bytes: float = 0.0

    @classmethod
    def of(
        cls,
        config: Config,
        cluster: ClusterConfig,
        times: ComputeTimes,
        num_servers: int,
        num_elements: int,
        *,
        matrix_operations: int,
    ) -> "Costs":
        """Of training as configured.

        Raises:
            UserError: hosts are to sum what is pushed there, and some have no server.
        """
        hosts = hosts_of(config, cluster, num_servers)
        in_place, num_hosts = cluster.network.gradients_in_place, 0 if hosts is None else hosts.number
        moved = push_and_pull_bytes(config, num_elements, in_place=in_place, num_hosts=num_hosts)
        sums = sum_bytes(config, num_elements)
        return cls(
            cluster,
            times,
            num_servers,
            num_elements,
            *moved,
            matrix_operations=matrix_operations,
            hosts=hosts,
            sum_bytes=sums,
        )

    @property
    def accumulate_seconds(self) -> float:
        """A server's time for reading a gradient and adding it to the sum."""
        server = self.cluster.server
        assert not isinstance(server.accumulate_seconds_per_element, str)
        return server.accumulate_seconds_per_element * self.num_elements / self.num_servers

    @property
    def apply_seconds(self) -> float:
        """A server's time for an update, without the sum."""
        server = self.cluster.server
        assert not isinstance(server.apply_seconds_per_element, str)
        seconds = server.apply_seconds_per_element * self.num_elements + self._matrix_seconds
        return server.update_seconds + seconds / self.num_servers

    @property
    def step_seconds(self) -> float:
        """A synchronous worker's time for the optimizer step on all elements, and its share of Muon's iterations."""
        per_element = self.cluster.compute.step_seconds_per_element
        if per_element is None:
            assert not isinstance(self.cluster.server.apply_seconds_per_element, str)
            per_element = self.cluster.server.apply_seconds_per_element
        return per_element * self.num_elements + self._matrix_seconds / self.cluster.workers

    @property
    def _matrix_seconds(self) -> float:
        seconds_per_operation = self.cluster.server.seconds_per_operation
        assert not isinstance(seconds_per_operation, str)
        return seconds_per_operation * self.matrix_operations


@dataclass
class Usage:
    """Seconds in which something was busy, summed over all that are alike, since the start.

    Attributes:
        compute: workers computing.
        waiting: workers waiting: for a server, for a slot (asynchronous) or for the slowest worker (sync).
        moving: workers pushing and pulling, or in the allreduce.
        server: one server accumulating and applying; in sync: one worker's optimizer steps.
        to_server, from_server: one server's link, by direction.
        worker_links: all workers' links, both directions.
        num_pull_retries: pulls that were repeated because the servers had moved on (a number, not seconds).
    """

    compute: float = 0.0
    waiting: float = 0.0
    moving: float = 0.0
    server: float = 0.0
    to_server: float = 0.0
    from_server: float = 0.0
    worker_links: float = 0.0
    num_pull_retries: int = 0
