"""The source of computing times that a cluster description and a configuration name."""

from collections.abc import Callable

from hpcasync.config.schema import StragglerConfig
from hpcasync.errors import UserError
from hpcasync.simulate.cluster import ClusterConfig
from hpcasync.simulate.compute_time import ComputeTimes, ModelledTimes, RecordedTimes
from hpcasync.simulate.recorded import read_timelines, seconds_per_token

MakeTimes = Callable[[ClusterConfig], ComputeTimes]


def times_of(cluster: ClusterConfig, straggler: StragglerConfig) -> MakeTimes:
    """A function that makes fresh times, the same again and again, for this cluster or one of another size."""
    if straggler.worker is not None and straggler.worker >= cluster.workers:
        raise UserError(f"straggler.worker={straggler.worker}, but workers are 0 to {cluster.workers - 1}")
    recorded = cluster.compute.recorded
    per_token = None if recorded is None else seconds_per_token(read_timelines(recorded))

    def make(of_size: ClusterConfig) -> ComputeTimes:
        times = ModelledTimes(of_size) if per_token is None else RecordedTimes(of_size, per_token)
        return times if straggler.worker is None else _Straggling(times, straggler.worker, straggler.slowdown)

    return make


class _Straggling:
    """Times with one worker that is slowed down, as `train.loop.worker.run_worker` does it."""

    def __init__(self, times: ComputeTimes, worker: int, slowdown: float) -> None:
        self._times = times
        self._worker = worker
        self._slowdown = slowdown

    def seconds(self, worker: int, num_tokens: int, now: float) -> float:
        seconds = self._times.seconds(worker, num_tokens, now)
        return seconds * self._slowdown if worker == self._worker else seconds
