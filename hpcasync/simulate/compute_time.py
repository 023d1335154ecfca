"""How long a worker computes: one stream of random times per worker, so that nothing depends on the order of events."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcasync.simulate.cluster import ClusterConfig, ComputeConfig, StallsConfig

_DRAW_FACTORS, _DRAW_PHASES = 1, 2
_FACTORS_AT_A_TIME = 64


class ComputeTimes(Protocol):
    """Times of forward and backward passes."""

    def seconds(self, worker: int, num_tokens: int, now: float) -> float:
        """How long the worker's next micro-batch of so many target tokens takes, from `now` on, stalls included."""


class ModelledTimes:
    """(seconds_per_batch + seconds_per_token · tokens) · factor / speed, and stalls."""

    def __init__(self, cluster: ClusterConfig) -> None:
        compute = cluster.compute
        self._per_batch = compute.seconds_per_batch
        self._per_token = compute.seconds_per_token
        self._speeds = [compute.speeds[worker % len(compute.speeds)] for worker in range(cluster.workers)]
        self._factors = [_Factors(compute, cluster.seed, worker) for worker in range(cluster.workers)]
        self._stalls = _Stalls(compute.stalls, cluster)

    def seconds(self, worker: int, num_tokens: int, now: float) -> float:
        busy = (self._per_batch + self._per_token * num_tokens) * self._factors[worker].draw() / self._speeds[worker]
        return self._stalls.lengthen(worker, busy, now)


class RecordedTimes:
    """Times per token drawn at random from those of a real run's workers, taken in turn, and stalls.

    Args:
        cluster: seed, number of workers, stalls.
        per_token: for each recorded worker, seconds per target token of its micro-batches.
    """

    def __init__(self, cluster: ClusterConfig, per_token: Sequence[Sequence[float]]) -> None:
        self._per_token = [np.asarray(per_token[worker % len(per_token)]) for worker in range(cluster.workers)]
        self._generators = [_generator(_DRAW_FACTORS, cluster.seed, worker) for worker in range(cluster.workers)]
        self._stalls = _Stalls(cluster.compute.stalls, cluster)

    def seconds(self, worker: int, num_tokens: int, now: float) -> float:
        recorded = self._per_token[worker]
        drawn = float(recorded[self._generators[worker].integers(len(recorded))])
        return self._stalls.lengthen(worker, drawn * num_tokens, now)


class _Factors:
    """Random factors of mean 1 on the times of one worker."""

    def __init__(self, compute: ComputeConfig, seed: int, worker: int) -> None:
        self._compute = compute
        self._generator = _generator(_DRAW_FACTORS, seed, worker)
        self._drawn: list[float] = []

    def draw(self) -> float:
        if self._compute.jitter == "none":
            return 1.0
        if not self._drawn:
            self._drawn = self._draw_many()[::-1].tolist()
        return self._drawn.pop()

    def _draw_many(self) -> NDArray[np.float64]:
        if self._compute.jitter == "lognormal":
            variance = np.log1p(self._compute.cv**2)
            return self._generator.lognormal(-variance / 2, np.sqrt(variance), _FACTORS_AT_A_TIME)
        tail = self._compute.tail
        # numpy's pareto is of Lomax's kind, which begins at 0.
        return (1 + self._generator.pareto(tail, _FACTORS_AT_A_TIME)) * (tail - 1) / tail


class _Stalls:
    """Periodic stalls, at a random phase for each worker."""

    def __init__(self, stalls: StallsConfig, cluster: ClusterConfig) -> None:
        self._every, self._length = stalls.every_seconds, stalls.seconds
        chosen = range(cluster.workers) if stalls.workers is None else stalls.workers
        self._phases = {
            worker: float(_generator(_DRAW_PHASES, cluster.seed, worker).uniform(0, stalls.every_seconds))
            for worker in (chosen if self._length else ())
        }

    def lengthen(self, worker: int, busy: float, now: float) -> float:
        """Time from `now` until `busy` seconds have been computed."""
        if worker not in self._phases:
            return busy
        # Within a period of `every` seconds the first `length` are lost.
        position = (now - self._phases[worker]) % self._every
        lost = max(0.0, self._length - position)
        free = self._every - max(position, self._length)
        if busy <= free:
            return lost + busy
        num_periods, rest = divmod(busy - free, self._every - self._length)
        return lost + free + float(num_periods) * self._every + (self._length + rest if rest else 0.0)


def _generator(purpose: int, seed: int, worker: int) -> np.random.Generator:
    return np.random.default_rng([purpose, seed, worker])
