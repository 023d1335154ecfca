"""Workers that have stopped or are far slower than the others, told by when their pushes arrive.

What is usual is learnt from the run itself: the median interval between pushes and its median absolute deviation (MAD),
which a few long intervals do not move (Leys et al. 2013, "Detecting outliers").
"""

import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_NUM_INTERVALS = 32
_FEWEST_INTERVALS = 5
_DEVIATIONS = 10.0
# The MAD of a normal distribution is its standard deviation divided by this.
_NORMAL = 1.4826
_LEAST_FACTOR = 3.0
# While nobody has pushed twice there is nothing to compare with.
_FACTOR_AT_START = 10.0
_SLOW_FACTOR = 3.0


@dataclass(frozen=True)
class Stall:
    """A worker is silent for longer than is usual.

    Attributes:
        worker: worker_index.
        silent_seconds: since its last push, or since the start.
        usual_seconds: median interval between its pushes, or between those of all workers; 0: not known yet.
    """

    worker: int
    silent_seconds: float
    usual_seconds: float


@dataclass(frozen=True)
class SlowWorker:
    """A worker needs several times as long for a push as the others: medians in seconds."""

    worker: int
    own_seconds: float
    others_seconds: float


class StallDetector:
    """Knows when each worker pushed last, and what is usual.

    A worker counts as stalled when it is silent for longer than median + 10 standard deviations (by the MAD), three
    medians, and `least_seconds`: of its own intervals where there are some, else of all workers'.

    Args:
        least_seconds: shortest silence that counts.
        now: time of the start, in seconds by any clock.
    """

    def __init__(self, num_workers: int, least_seconds: float, now: float) -> None:
        self._least_seconds = least_seconds
        self._last = dict.fromkeys(range(num_workers), now)
        self._has_pushed: set[int] = set()
        self._intervals: list[deque[float]] = [deque(maxlen=_NUM_INTERVALS) for _ in range(num_workers)]
        self._stalled: set[int] = set()
        self._slow: set[int] = set()

    def pushed(self, worker: int, now: float) -> float | None:
        """A push has arrived; if the worker was reported as stalled, returns for how many seconds it was silent."""
        silence = now - self._last.get(worker, now)
        self._last[worker] = now
        # The first push comes after the model has been moved, compiled, and so on.
        if worker in self._has_pushed:
            self._intervals[worker].append(silence)
        self._has_pushed.add(worker)
        if worker not in self._stalled:
            return None
        self._stalled.remove(worker)
        return silence

    def finished(self, worker: int) -> None:
        """The worker pushes nothing more, or rests for now."""
        self._last.pop(worker, None)

    def stalls(self, now: float) -> Iterator[Stall]:
        """Workers that are found to be stalled now; each is reported once, until it pushes again."""
        for worker, last in self._last.items():
            if worker in self._stalled:
                continue
            usual, limit = self._usual(worker)
            if now - last > limit:
                self._stalled.add(worker)
                yield Stall(worker, now - last, usual)

    def slow_workers(self) -> Iterator[SlowWorker]:
        """Workers that are found to be several times slower than the others; each is reported once."""
        medians = {
            worker: statistics.median(own)
            for worker in self._last
            if len(own := self._intervals[worker]) >= _FEWEST_INTERVALS
        }
        for worker, own_median in medians.items():
            others = [median for other, median in medians.items() if other != worker]
            if worker in self._slow or not others:
                continue
            others_median = statistics.median(others)
            if own_median > _SLOW_FACTOR * others_median:
                self._slow.add(worker)
                yield SlowWorker(worker, own_median, others_median)

    def _usual(self, worker: int) -> tuple[float, float]:
        """Median interval, and the silence from which on a worker is stalled."""
        intervals = list(self._intervals[worker])
        if len(intervals) < _FEWEST_INTERVALS:
            intervals = [interval for own in self._intervals for interval in own]
        if not intervals:
            return 0.0, _FACTOR_AT_START * self._least_seconds
        median = statistics.median(intervals)
        deviation = _NORMAL * statistics.median(abs(interval - median) for interval in intervals)
        return median, max(self._least_seconds, _LEAST_FACTOR * median, median + _DEVIATIONS * deviation)
