"""What a simulation tells about time: throughput, where it went, and which resource is the narrowest."""

from dataclasses import asdict, dataclass
from typing import Any

from hpcasync.train.records.summary import SATURATED


@dataclass(frozen=True)
class Throughput:
    """Rates in the steady state: shares are of the workers' or of the resource's time.

    Attributes:
        mode: of training.
        num_workers, num_servers: of the cluster; no servers in sync.
        seconds: virtual time measured.
        num_updates: in that time.
        target_tokens_per_second: applied.
        efficiency: part of the workers' time spent on computing gradients that were applied.
        waiting, moving: parts of the workers' time.
        server: part of its time that a server works; in sync, that a worker makes optimizer steps.
        to_server, from_server, worker_links: parts of the time in which a link is busy.
        staleness: number of gradients by staleness.
        pull_retries: pulls repeated because the servers had moved on, per pull that was not.
    """

    mode: str
    num_workers: int
    num_servers: int
    seconds: float
    num_updates: int
    target_tokens_per_second: float
    efficiency: float
    waiting: float
    moving: float
    server: float
    to_server: float
    from_server: float
    worker_links: float
    staleness: dict[int, int]
    pull_retries: float

    @property
    def staleness_mean(self) -> float:
        """In updates."""
        total = sum(self.staleness.values())
        return sum(updates * number for updates, number in self.staleness.items()) / total if total else 0.0

    @property
    def staleness_max(self) -> int:
        """In updates."""
        return max(self.staleness, default=0)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        staleness = {
            "mean": self.staleness_mean,
            "max": self.staleness_max,
            "histogram": {str(updates): number for updates, number in sorted(self.staleness.items())},
        }
        return {**asdict(self), "staleness": staleness, "bottleneck": bottleneck(self)}


def bottleneck(result: Throughput) -> str:
    """What limits throughput now, or will next, in words."""
    if result.mode == "sync":
        return _synchronous_bottleneck(result)
    shared = {
        "the servers' processors": result.server,
        "the servers' links, towards them (pushes)": result.to_server,
        "the servers' links, from them (pulls)": result.from_server,
    }
    name, busy = max(shared.items(), key=lambda item: item[1])
    if busy >= SATURATED:
        return f"{name}, busy {busy:.0%} of the time: more servers help, more workers do not"
    if result.worker_links >= SATURATED:
        return (
            f"the workers' links, busy {result.worker_links:.0%} of the time: a faster network or smaller pushes help"
        )
    if busy <= 0:
        return "computation"
    limit = int(result.num_workers * SATURATED / busy)
    lost = "" if result.efficiency >= SATURATED else f" ({_largest_loss(result)})"
    return f"computation{lost}; next {name}, busy {busy:.0%} of the time, full with about {limit:,} workers"


def _largest_loss(result: Throughput) -> str:
    if result.waiting >= result.moving:
        return f"{result.waiting:.0%} of the workers' time waits for servers"
    return f"{result.moving:.0%} of the workers' time moves gradients and parameters"


def _synchronous_bottleneck(result: Throughput) -> str:
    parts = {
        "waiting for the slowest worker": result.waiting,
        "the allreduce": result.moving,
        "the optimizer step": result.server,
    }
    name, part = max(parts.items(), key=lambda item: item[1])
    limit = "computation" if part < result.efficiency else name
    return f"{limit}; largest loss: {name}, {part:.0%} of the time"
