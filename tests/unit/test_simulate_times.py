"""Times of a simulated cluster: computing, stalls, links, the allreduce."""

from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.simulate.cluster import ClusterConfig, ForcedStalenessConfig, NetworkConfig, parse_cluster
from hpcasync.simulate.compute_time import ModelledTimes, RecordedTimes
from hpcasync.simulate.forced_staleness import forced_staleness
from hpcasync.simulate.network import FifoLink, Network, ring_allreduce_seconds
from hpcasync.simulate.timing import polling_delay


def cluster_with(workers: int = 2, seed: int = 1, **compute: Any) -> ClusterConfig:
    return parse_cluster({"workers": workers, "seed": seed, "compute": compute}, "test")


def draw(cluster: ClusterConfig, worker: int, number: int) -> np.ndarray:
    times = ModelledTimes(cluster)
    return np.array([times.seconds(worker, 1, 0.0) for _ in range(number)])


def test_time_is_linear_in_tokens_and_divided_by_speed() -> None:
    times = ModelledTimes(cluster_with(3, seconds_per_batch=0.5, seconds_per_token=0.01, speeds=[1, 0.5]))
    assert times.seconds(0, 50, 7.0) == pytest.approx(1.0)
    assert times.seconds(1, 50, 7.0) == pytest.approx(2.0)
    assert times.seconds(2, 50, 7.0) == pytest.approx(1.0), "speeds are repeated in turn"


@pytest.mark.parametrize("cv", [0.1, 0.5, 1.0])
def test_lognormal_jitter_has_mean_one_and_the_cv_asked_for(cv: float) -> None:
    drawn = draw(cluster_with(seconds_per_token=1.0, jitter="lognormal", cv=cv), 0, 40_000)
    assert drawn.mean() == pytest.approx(1.0, rel=0.03)
    assert drawn.std() == pytest.approx(cv, rel=0.1)


def test_pareto_jitter_has_mean_one_and_a_tail() -> None:
    drawn = draw(cluster_with(seconds_per_token=1.0, jitter="pareto", tail=3.0), 0, 40_000)
    assert drawn.mean() == pytest.approx(1.0, rel=0.03)
    assert drawn.min() >= 2 / 3
    # P(factor > x) = (x_min / x)^3 with x_min = 2/3.
    assert np.mean(drawn > 2.0) == pytest.approx((1 / 3) ** 3, rel=0.15)


def test_times_depend_on_seed_and_worker_and_not_on_order() -> None:
    cluster = cluster_with(seconds_per_token=1.0, jitter="lognormal", cv=0.5)
    alone = draw(cluster, 1, 100)
    times = ModelledTimes(cluster)
    in_turn = np.array([[times.seconds(worker, 1, 0.0) for worker in (0, 1)] for _ in range(100)])
    np.testing.assert_array_equal(in_turn[:, 1], alone)
    assert not np.array_equal(in_turn[:, 0], alone)
    assert not np.array_equal(draw(cluster.changed(seed=2), 1, 100), alone)


@settings(max_examples=100)
@given(busy=st.floats(0.01, 30), now=st.floats(0, 50), length=st.floats(0.1, 2), rest=st.floats(0.1, 5))
def test_stalls_stretch_time_as_stepping_through_it_does(busy: float, now: float, length: float, rest: float) -> None:
    every = length + rest
    stalls = {"every_seconds": every, "seconds": length, "workers": [0]}
    cluster = cluster_with(seconds_per_batch=busy, seconds_per_token=0, stalls=stalls)
    times = ModelledTimes(cluster)
    lengthened = times.seconds(0, 1, now)
    assert times.seconds(1, 1, now) == busy, "the other worker does not stall"
    # The time computed within [now, end) is what remains without the stalled parts.
    phase = float(np.random.default_rng([2, cluster.seed, 0]).uniform(0, every))
    end = now + lengthened
    first = int((now - phase) // every) - 1
    starts = [phase + number * every for number in range(first, int((end - phase) // every) + 2)]
    stalled = sum(max(0.0, min(end, start + length) - max(now, start)) for start in starts)
    assert lengthened - stalled == pytest.approx(busy, abs=1e-6)


def test_recorded_times_are_those_of_the_workers_in_turn() -> None:
    cluster = cluster_with(3, seconds_per_token=1.0)
    times = RecordedTimes(cluster, [[0.1, 0.2], [0.5]])
    drawn = {worker: {round(times.seconds(worker, 10, 0.0), 9) for _ in range(50)} for worker in range(3)}
    assert drawn == {0: {1.0, 2.0}, 1: {5.0}, 2: {1.0, 2.0}}


def test_a_link_carries_one_transfer_after_the_other() -> None:
    link = FifoLink(bandwidth=10.0)
    assert link.reserve(1.0, 20) == (1.0, 3.0)
    assert link.reserve(2.0, 10) == (3.0, 4.0)
    assert link.reserve(9.0, 10) == (9.0, 10.0)
    assert link.busy_seconds == 4.0


def transfer_ends(network_config: dict[str, Any], num_servers: int, *, pulls: bool) -> list[float]:
    """When transfers of 100 bytes that 3 workers begin at once end."""
    env = simpy.Environment()
    network = Network(env, NetworkConfig(**network_config), 3, num_servers)
    ends = []

    def one(worker: int) -> Any:
        yield from (network.pull if pulls else network.push)(worker, 100)
        ends.append(env.now)

    for worker in range(3):
        env.process(one(worker))
    env.run()
    return ends


@pytest.mark.parametrize("pulls", [False, True])
def test_workers_share_the_link_of_a_server(pulls: bool) -> None:
    config = {"latency_seconds": 0.5, "bandwidth": 10.0}
    assert transfer_ends(config, 1, pulls=pulls) == pytest.approx([10.5, 20.5, 30.5])


@pytest.mark.parametrize("pulls", [False, True])
def test_servers_share_the_bytes(pulls: bool) -> None:
    config = {"latency_seconds": 0.0, "bandwidth": 10.0, "worker_bandwidth": 1000.0}
    assert transfer_ends(config, 2, pulls=pulls) == pytest.approx([5, 10, 15])


@pytest.mark.parametrize("pulls", [False, True])
def test_workers_of_a_node_share_its_link(pulls: bool) -> None:
    config = {"latency_seconds": 0.0, "bandwidth": 1000.0, "worker_bandwidth": 10.0, "workers_per_link": 2}
    assert sorted(transfer_ends(config, 1, pulls=pulls)) == pytest.approx([10, 10, 20], rel=0.02)


def test_the_ring() -> None:
    network = NetworkConfig(latency_seconds=0.5, bandwidth=10.0)
    assert ring_allreduce_seconds(100, 4, network) == pytest.approx(2 * 3 / 4 * 100 / 10 + 6 * 0.5)
    assert ring_allreduce_seconds(100, 1, network) == 0


def test_polling_delay_grows_to_half_a_millisecond() -> None:
    assert polling_delay(0.0) == 0.0
    assert polling_delay(0.004) == pytest.approx(0.0002)
    assert polling_delay(1.0) == 0.0005


def test_forced_staleness_warms_up() -> None:
    delay = ForcedStalenessConfig(updates=4, warmup=8)
    assert [forced_staleness(delay, version) for version in (0, 1, 2, 4, 7, 8, 100)] == [0, 0, 1, 2, 3, 4, 4]
    assert forced_staleness(ForcedStalenessConfig(updates=3), 0) == 3
    assert forced_staleness(ForcedStalenessConfig(), 50) == 0
