"""The source of computing times that a cluster description names."""

from functools import partial

from hpcasync.simulate.cluster import ClusterConfig
from hpcasync.simulate.compute_time import ComputeTimes, ModelledTimes, RecordedTimes
from hpcasync.simulate.recorded import read_timelines, seconds_per_token
from hpcasync.simulate.throughput import MakeTimes


def times_of(cluster: ClusterConfig) -> MakeTimes:
    """A function that makes fresh times, the same again and again, for this cluster or one of another size.

    Raises:
        UserError: recorded times cannot be read.
    """
    if cluster.compute.recorded is None:
        return ModelledTimes
    return partial(_recorded, seconds_per_token(read_timelines(cluster.compute.recorded)))


def _recorded(per_token: list[list[float]], cluster: ClusterConfig) -> ComputeTimes:
    return RecordedTimes(cluster, per_token)
