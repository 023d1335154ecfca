"""What workers and servers of a simulated cluster see of each other (`ps.protocol.control_words` in a real one)."""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from hpcasync.choices import WHOLE_GRADIENT_FORMATS, PullPolicy
from hpcasync.config.exchange import Overlap
from hpcasync.config.schema import Config
from hpcasync.simulate.network import Network
from hpcasync.simulate.program import Program
from hpcasync.simulate.timing import Costs, Usage, polling_delay


@dataclass(frozen=True)
class ExchangeOptions:
    """How workers and servers exchange.

    Attributes:
        pull: exchange.pull.
        overlap: exchange.overlap.
        num_local: accumulate.local.
        num_slots: exchange.slots.
        prefetch: a batch is drawn while the one before is being computed.
        fresh_updates: of the fresh start.
        sums_late: gradients stay in their slots until the update, as in `ps.server.group_sum` if the format allows.
    """

    pull: PullPolicy
    overlap: Overlap
    num_local: int
    num_slots: int
    prefetch: bool
    sums_late: bool
    fresh_updates: int

    @classmethod
    def of(cls, config: Config, fresh_updates: int = 0) -> "ExchangeOptions":
        """As configured."""
        exchange = config.exchange
        sums_late = exchange.gradients not in WHOLE_GRADIENT_FORMATS and not config.staleness.compensation
        prefetch = config.device == "cuda" if config.data.prefetch is None else config.data.prefetch
        num_local = config.accumulate.local
        return cls(config.pull, exchange.overlap, num_local, exchange.slots, prefetch, sums_late, fresh_updates)


@dataclass
class Told:
    """What the servers have told a worker: how many of its pushes are in each state."""

    consumed: int = 0
    handled: int = 0
    settled: int = 0
    change: simpy.Event | None = field(default=None, repr=False)

    def tell(self, **counts: int) -> None:
        """Change counts, if any, and wake the worker if it waits for a change."""
        vars(self).update(counts)
        if self.change is not None:
            self.change.succeed()
            self.change = None


@dataclass(frozen=True)
class Push:
    """A push that has been announced. Its gradient is computed when the server takes it: the result is the same.

    Attributes:
        worker: worker_index.
        sequence: numbered per worker from 1.
        version: of `parameters`.
        parameters: that the gradient is computed from.
        tickets: batches.
        compute_seconds: time that they took.
    """

    worker: int
    sequence: int
    version: int
    parameters: Any
    tickets: tuple[int, ...]
    compute_seconds: float


@dataclass(frozen=True)
class Goodbye:
    """A worker pushes nothing more."""

    worker: int


class Exchange:
    """The state that workers and the server share, and the virtual clock.

    Attributes:
        published: newest version that workers may pull.
        writing: version that the servers are writing, or have written.
        is_stopping: whether workers have been told to stop.
        num_drawn: batches drawn so far.
        told: by worker.
    """

    def __init__(self, costs: Costs, program: Program, options: ExchangeOptions, version: int) -> None:
        self.env = simpy.Environment()
        self.costs = costs
        self.program = program
        self.options = options
        self.round_trip = 2 * costs.cluster.network.latency_seconds
        self.network = Network(self.env, costs.cluster.network, costs.cluster.workers, costs.num_servers)
        self.usage = Usage()
        self.published = self.writing = version
        self.is_stopping = False
        self.num_drawn = 0
        self.told = [Told() for _ in range(costs.cluster.workers)]
        self._inbox: deque[Push | Goodbye] = deque()
        self._idle: simpy.Event | None = None

    @property
    def now(self) -> float:
        return float(self.env.now)

    @property
    def is_quiet(self) -> bool:
        """Whether the coordinator has nothing to do."""
        return not self._inbox

    def send(self, message: Push | Goodbye) -> None:
        self._inbox.append(message)
        if self._idle is not None:
            self._idle.succeed()
            self._idle = None

    def receive(self) -> Generator[simpy.Event, Any, Push | Goodbye]:
        """Wait for the next message, which a coordinator that sleeps sees late."""
        if not self._inbox:
            started = self.now
            self._idle = self.env.event()
            yield self._idle
            yield self.env.timeout(polling_delay(self.now - started))
        return self._inbox.popleft()
