"""The asynchronous modes in virtual time: workers and one server.

All servers do the same at the same time, each on its shard, so one of them is simulated with its share of elements and
bytes.
"""

from collections.abc import Sequence

from hpcasync.ps.protocol.coordination import Coordination
from hpcasync.ps.protocol.updates import UpdateState
from hpcasync.simulate.coordinator import SimulatedCoordinator
from hpcasync.simulate.exchange import Exchange, ExchangeOptions
from hpcasync.simulate.network import Waiting
from hpcasync.simulate.program import Program
from hpcasync.simulate.timing import Costs, Usage
from hpcasync.simulate.worker import WORKERS
from hpcasync.timeline import Timeline


class AsynchronousCluster:
    """Workers that push to servers until the corpus or the program ends.

    Args:
        stop_seconds: virtual time at which the program is asked whether to stop, whatever happens then; 0: none.
    """

    def __init__(
        self,
        costs: Costs,
        program: Program,
        decisions: UpdateState,
        options: ExchangeOptions,
        *,
        stop_seconds: float = 0.0,
    ) -> None:
        self._exchange = Exchange(costs, program, options, decisions.version)
        self._coordination = Coordination(decisions)
        self._stop_seconds = stop_seconds

    @property
    def now(self) -> float:
        return self._exchange.now

    @property
    def usage(self) -> Usage:
        usage, network = self._exchange.usage, self._exchange.network
        usage.to_server = network.to_server.busy_seconds
        usage.from_server = network.from_server.busy_seconds
        usage.worker_links = sum(link.busy_seconds for link in network.worker_links)
        return usage

    def run(self, timelines: Sequence[Timeline] | None = None) -> None:
        """Run until every worker has finished."""
        exchange = self._exchange
        num_workers = exchange.costs.cluster.workers
        of_coordinator, *of_workers = timelines or [Timeline()] * (1 + num_workers)
        coordinator = SimulatedCoordinator(exchange, self._coordination, of_coordinator)
        serving = exchange.env.process(coordinator.run())
        kind = WORKERS[exchange.options.overlap]
        for index, timeline in enumerate(of_workers):
            exchange.env.process(kind(index, exchange, timeline).run())
        if self._stop_seconds:
            exchange.env.process(self._stop_in_time(coordinator))
        exchange.env.run(until=serving)

    def _stop_in_time(self, coordinator: SimulatedCoordinator) -> Waiting:
        yield self._exchange.env.timeout(self._stop_seconds)
        yield from coordinator.stop_if_over()
