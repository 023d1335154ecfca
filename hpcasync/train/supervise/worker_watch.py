"""Tells people which workers have stopped or are slow; training goes on without them."""

from collections.abc import Callable

from hpcasync.comm.roles import Roles
from hpcasync.train.records.recorder import Recorder
from hpcasync.train.supervise.stalls import StallDetector

_CHECK_SECONDS = 1.0


class WorkerWatch:
    """The coordinator's eye on the workers.

    Args:
        recorder: where reports go: events `stall`, `stall-over` and `slow-worker`, and a line for people.
        least_seconds: shortest silence that is reported (logging.stall); 0: none is.
    """

    def __init__(self, recorder: Recorder, roles: Roles, least_seconds: float, clock: Callable[[], float]) -> None:
        self._recorder = recorder
        self._roles = roles
        self._clock = clock
        self._least_seconds = least_seconds
        self._detector: StallDetector | None = None
        self._checked = 0.0
        self._num_live = len(roles.worker_ranks)

    def begin(self) -> None:
        if self._least_seconds:
            self._checked = self._clock()
            self._detector = StallDetector(len(self._roles.worker_ranks), self._least_seconds, self._checked)

    def pushed(self, worker: int) -> None:
        silence = None if self._detector is None else self._detector.pushed(worker, self._clock())
        if silence is not None:
            self._report("stall-over", worker, f"pushes again, after {silence:.0f} s", silent_seconds=silence)

    def finished(self, worker: int) -> None:
        if self._detector is not None:
            self._detector.finished(worker)

    def died(self, worker: int) -> dict[str, object]:
        """The worker has died, and the others go on; returns which one it was."""
        self.finished(worker)
        self._num_live -= 1
        rank = self._roles.worker_ranks[worker]
        text = f"has died; {self._num_live} worker(s) go on, and do what it had begun"
        self._report("worker-lost", worker, text if self._num_live else "has died, the last one")
        return {"worker": worker, "rank": rank, "host": self._roles.hosts[rank]}

    def check(self) -> None:
        """Report what is new; may be called as often as one likes."""
        now = self._clock()
        if self._detector is None or now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        for stall in self._detector.stalls(now):
            usual = f"usual are {stall.usual_seconds:.2g} s" if stall.usual_seconds else "and nobody else has yet"
            self._report(
                "stall",
                stall.worker,
                f"has pushed nothing for {stall.silent_seconds:.0f} s, {usual}; the others go on",
                silent_seconds=stall.silent_seconds,
                usual_seconds=stall.usual_seconds,
            )
        for slow in self._detector.slow_workers():
            factor = slow.own_seconds / slow.others_seconds
            self._report(
                "slow-worker",
                slow.worker,
                f"is {factor:.1f} times slower than the others: {slow.own_seconds:.2g} s from push to push, "
                f"{slow.others_seconds:.2g} s",
                own_seconds=slow.own_seconds,
                others_seconds=slow.others_seconds,
            )

    def _report(self, kind: str, worker: int, text: str, **fields: float) -> None:
        rank = self._roles.worker_ranks[worker]
        host = self._roles.hosts[rank]
        self._recorder.event(kind, worker=worker, rank=rank, host=host, **fields)
        self._recorder.say(f"worker {worker} (rank {rank} on {host}) {text}")
