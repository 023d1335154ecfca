"""Throughput in virtual time: against cycles worked out by hand, and what must hold of any cluster."""

import itertools
import json
from typing import Any

import pytest
from simulated_cluster import MODES, cluster_of, config_of

from hpcasync.config.schema import Config
from hpcasync.simulate.cluster import ClusterConfig, parse_cluster
from hpcasync.simulate.compute_time import ModelledTimes
from hpcasync.simulate.result import Throughput, bottleneck
from hpcasync.simulate.sweep import compare_sizes, search_servers
from hpcasync.simulate.throughput import fewest_servers, measure_throughput
from hpcasync.simulate.timing import Costs
from hpcasync.simulate.workload import Workload, push_and_pull_bytes

WORKLOAD = Workload((90, 100, 110), 1_000_000)


def measure(config: Config, cluster: ClusterConfig, workload: Workload = WORKLOAD, steps: int = 40) -> Throughput:
    return measure_throughput(config, cluster, workload, ModelledTimes, num_steps=steps)


def rate(config: Config, **cluster: Any) -> float:
    return measure(config, cluster_of(**cluster)).target_tokens_per_second


@pytest.mark.parametrize(("prefetch", "num_latencies", "operations"), [(False, 21, 0), (True, 19, 0), (False, 21, 400)])
def test_a_cycle_of_one_worker_by_hand(prefetch: bool, num_latencies: int, operations: int) -> None:
    """Long waits are seen half a millisecond late; 21 latencies: draw 4, slot 4, push 3, handled 4, pull 6.

    With prefetch the batch has been drawn, while the one before was computed; whether to stop is still asked.
    """
    cluster = parse_cluster(
        {
            "workers": 1,
            "compute": {"seconds_per_batch": 2.0, "seconds_per_token": 0},
            "network": {"latency_seconds": 0.01, "bandwidth": 1e6},
            "server": {
                "accumulate_seconds_per_element": 2e-7,
                "apply_seconds_per_element": 1e-6,
                "push_seconds": 0.03,
                "update_seconds": 0.05,
                "seconds_per_operation": 5e-4,
            },
        },
        "test",
    )
    config = config_of("async", data={"path": "corpus", "prefetch": prefetch})
    result = measure(config, cluster, Workload((100,), 100_000, operations))
    served = 0.03 + 0.05 + 0.02 + 0.1 + 5e-4 * operations
    cycle = 2.0 + served + 2 * 0.4 + num_latencies * 0.01 + 2 * 0.0005
    assert result.target_tokens_per_second == pytest.approx(100 / cycle, rel=1e-6)
    assert result.efficiency == pytest.approx(2.0 / cycle, rel=1e-6)
    assert result.server == pytest.approx(served / cycle, rel=1e-6)
    assert result.to_server == result.from_server == pytest.approx(0.4 / cycle, rel=1e-6)
    assert result.staleness == {0: result.num_updates}


@pytest.mark.parametrize(("num_workers", "seconds"), [(1, 0.5), (4, 0.2)])
def test_workers_of_sync_share_muons_iterations(num_workers: int, seconds: float) -> None:
    server = {"apply_seconds_per_element": 1e-6, "seconds_per_operation": 1e-3}
    cluster = parse_cluster({"workers": num_workers, "server": server}, "test")
    costs = Costs(cluster, ModelledTimes(cluster), 1, 100_000, 0, 0, matrix_operations=400)
    assert costs.step_seconds == pytest.approx(seconds)


SLOW_NETWORK: dict[str, Any] = {
    "workers": 1,
    "compute": {"seconds_per_batch": 3.0, "seconds_per_token": 0},
    "network": {"latency_seconds": 0, "bandwidth": 1e6},
    "server": {
        "accumulate_seconds_per_element": 0,
        "apply_seconds_per_element": 1e-7,
        "push_seconds": 0,
        "update_seconds": 0,
    },
}


@pytest.mark.parametrize(
    ("num_elements", "overlap", "expected"),
    [
        # A push or a pull takes 0.4 s, an update 0.01 s; a small model is one bucket, complete when the computation is.
        (100_000, "none", 3.0 + 0.4 + 0.01 + 0.4),
        (100_000, "push", 3.0 + 0.4 + 0.01 + 0.4),
        (100_000, "full", 3.0),
        # Three buckets of 1.05 s, complete after 1 + 2/3, 1 + 4/3 and 3 s: the line is busy from the first on.
        (3 << 20, "none", 3.0 + 2 * (3 << 22) / 4e6 + 0.31),
        (3 << 20, "push", 1 + 2 / 3 + 2 * (3 << 22) / 4e6 + 0.31),
        # All of it takes longer than computing: a push and a pull in turn, after the wait for the update.
        (3 << 20, "full", 2 * (3 << 22) / 4e6 + 0.31),
    ],
)
def test_transfers_beside_the_computation_by_hand(num_elements: int, overlap: str, expected: float) -> None:
    bandwidth = 1e6 if num_elements == 100_000 else 4e6
    cluster = parse_cluster({**SLOW_NETWORK, "network": {"latency_seconds": 0, "bandwidth": bandwidth}}, "test")
    result = measure(config_of("async", exchange={"overlap": overlap}), cluster, Workload((100,), num_elements))
    assert 100 / result.target_tokens_per_second == pytest.approx(expected, rel=0.01)
    assert result.staleness_mean == pytest.approx(1 if overlap == "full" else 0, abs=0.05)


@pytest.mark.parametrize(("gradients", "num_bytes"), [("fp32", 4), ("bf16", 2)])
def test_sums_of_hosts_by_hand(gradients: str, num_bytes: int) -> None:
    """Two hosts of two workers and a server: pushes move nothing, each server sends the other half of a sum.

    Then the parameters that lie with the other host are pulled: 0.2 s over a host's link, for the last of four from the
    fourth turn on a server's, where each takes 0.1 s.
    """
    cluster = parse_cluster(
        {**SLOW_NETWORK, "workers": 4, "network": {"latency_seconds": 0, "bandwidth": 1e6, "workers_per_link": 2}},
        "test",
    )
    exchange = {"host_sums": True, "gradients": gradients, "pull": "applied"}
    config = config_of("async-global", roles={"servers": 2}, exchange=exchange)
    result = measure(config, cluster, Workload((100,), 100_000))
    expected = 3.0 + num_bytes * 0.05 + 0.005 + 3 * 0.1 + 0.2
    assert 400 / result.target_tokens_per_second == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize(("hosts", "speedup"), [(2, 1.3), (4, 1.05)])
def test_sums_of_hosts_pay_where_many_workers_share_a_slow_link(hosts: int, speedup: float) -> None:
    network = {"latency_seconds": 0, "bandwidth": 1e6, "workers_per_link": 16 // hosts}
    cluster = parse_cluster({**SLOW_NETWORK, "workers": 16, "network": network}, "test")
    alone, summed = (
        measure(
            config_of("async-global", accumulate={"global": 16}, roles={"servers": 4}, exchange={"host_sums": sums}),
            cluster,
        )
        for sums in (False, True)
    )
    assert summed.target_tokens_per_second > speedup * alone.target_tokens_per_second
    assert summed.to_server < alone.to_server / 3, "gradients come as sums"


def test_a_synchronous_round_by_hand() -> None:
    cluster = parse_cluster(
        {
            "workers": 4,
            "compute": {"seconds_per_batch": 1.0, "seconds_per_token": 0, "speeds": [1, 1, 1, 0.5]},
            "network": {"latency_seconds": 0.01, "bandwidth": 1e6},
            "server": {"apply_seconds_per_element": 1e-6},
        },
        "test",
    )
    result = measure(config_of("sync", accumulate={"local": 2}), cluster, Workload((100,), 100_000))
    allreduce = 1.5 * 0.4 + 6 * 0.01
    round_seconds = 4.0 + allreduce + 0.1
    assert result.target_tokens_per_second == pytest.approx(800 / round_seconds)
    assert result.efficiency == pytest.approx((3 * 2.0 + 4.0) / (4 * round_seconds))
    assert result.waiting == pytest.approx(3 * 2.0 / (4 * round_seconds))
    assert result.moving == pytest.approx(allreduce / round_seconds)
    assert result.server == pytest.approx(0.1 / round_seconds)


@pytest.mark.parametrize(
    ("bandwidth", "more", "allreduce"),
    [
        # Four buckets of 1 s for two workers of which one takes 6 s; the others complete after 3, 4 and 5 s.
        (1 << 24, {}, 1.0),
        (1 << 24, {"sync": {"compression": "bf16", "backend": "torch"}}, 0.5),
        (1 << 24, {"precision": "fp16"}, 4.0),
        # Of 3 s each: from the first on one is summed after the other.
        ((1 << 24) / 3, {}, 3.0 + 12.0 - 6.0),
    ],
)
def test_buckets_are_summed_beside_the_computation(bandwidth: float, more: dict[str, Any], allreduce: float) -> None:
    cluster = parse_cluster(
        {
            "workers": 2,
            "compute": {"seconds_per_batch": 6.0, "seconds_per_token": 0, "speeds": [2, 1]},
            "network": {"latency_seconds": 0, "bandwidth": bandwidth},
            "server": {"apply_seconds_per_element": 0},
        },
        "test",
    )
    result = measure(config_of("sync", **more), cluster, Workload((100,), 4 << 22))
    assert result.target_tokens_per_second == pytest.approx(200 / (6.0 + allreduce))
    assert result.moving == pytest.approx(allreduce / (6.0 + allreduce))


def test_a_full_link_carries_its_bandwidth() -> None:
    """8 workers that compute in no time to speak of: a push takes 0.4 s of the server's link, a pull half of that."""
    cluster = parse_cluster(
        {
            "workers": 8,
            "compute": {"seconds_per_batch": 1e-3, "seconds_per_token": 0},
            "network": {"bandwidth": 1e6, "worker_bandwidth": 1e9},
            "server": {"accumulate_seconds_per_element": 0, "apply_seconds_per_element": 0},
        },
        "test",
    )
    config = config_of(accumulate={"global": 8}, exchange={"parameters": "bf16"})
    result = measure(config, cluster, Workload((100,), 100_000), steps=40)
    assert result.target_tokens_per_second == pytest.approx(100 / 0.4, rel=0.05)
    assert result.to_server > 0.95
    assert bottleneck(result).startswith("the servers' links, towards them (pushes)")
    double = measure(config.with_servers(2), cluster, Workload((100,), 100_000), steps=40)
    assert double.target_tokens_per_second == pytest.approx(2 * result.target_tokens_per_second, rel=0.1)


def test_a_full_server_is_named() -> None:
    cluster = cluster_of(32, server={"apply_seconds_per_element": 1e-6})
    result = measure(config_of("async"), cluster)
    assert result.server > 0.95
    assert bottleneck(result).startswith("the servers' processors")
    assert result.target_tokens_per_second == pytest.approx(100 / (1 + 1e-4 + 5e-5 + 1e-3), rel=0.02)


def test_computation_is_the_bottleneck_of_a_small_cluster() -> None:
    result = measure(config_of(), cluster_of(2))
    assert result.efficiency > 0.9
    assert bottleneck(result).startswith("computation; next the servers' processors, busy")
    assert "waiting for the slowest worker" in bottleneck(measure(config_of("sync"), cluster_of(16)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("jitter", [{"jitter": "lognormal", "cv": 0.5}, {"jitter": "pareto", "tail": 1.5}])
def test_bit_for_bit_repeatable(mode: str, jitter: dict[str, Any]) -> None:
    stalls = {"every_seconds": 5, "seconds": 1}
    compute = {"seconds_per_token": 1e-3, **jitter, "stalls": stalls}
    cluster = cluster_of(5, compute=compute)
    first, second = (json.dumps(measure(config_of(mode), cluster).to_dict()) for _ in range(2))
    assert first == second
    assert json.dumps(measure(config_of(mode), cluster.changed(seed=7)).to_dict()) != first


@pytest.mark.parametrize("mode", ["sync", "async-global"])
def test_more_latency_or_less_bandwidth_or_slower_workers_never_help(mode: str) -> None:
    config = config_of(mode)
    compute = {"seconds_per_token": 1e-3}

    def rates(key: str, values: list[float]) -> list[float]:
        return [rate(config, compute=compute, network={key: value}) for value in values]

    for worse in (
        rates("latency_seconds", [0, 1e-6, 1e-4, 1e-3, 1e-2, 0.1]),
        rates("bandwidth", [1e12, 1e10, 1e9, 1e8, 1e7, 1e6]),
        [rate(config, compute={**compute, "speeds": [1, speed]}) for speed in (1, 0.9, 0.5, 0.1)],
        [rate(config, compute={"seconds_per_token": 1e-3, **({"jitter": "lognormal", "cv": cv} if cv else {})})
         for cv in ((0, 0.2, 0.6, 1.2) if mode == "sync" else ())],
    ):  # fmt: skip
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(worse)), worse


def test_uneven_workers_cost_synchronous_training_more() -> None:
    compute = {"seconds_per_token": 1e-3, "speeds": [1, 1, 1, 0.5]}
    sync, asynchronous = (measure(config_of(mode), cluster_of(4, compute=compute)) for mode in ("sync", "async-global"))
    # Three workers wait half of their time for the fourth: 4 · 0.5 against 3 + 0.5.
    ratio = asynchronous.target_tokens_per_second / sync.target_tokens_per_second
    assert ratio == pytest.approx(3.5 / 2, rel=0.1)


def test_staleness_of_async_is_the_number_of_other_workers() -> None:
    even = {"seconds_per_token": 1e-3}
    result = measure(config_of("async"), cluster_of(8, compute=even), Workload((100,), 1000), steps=60)
    assert result.staleness_mean == pytest.approx(7, abs=0.5)
    grouped = measure(config_of(accumulate={"global": 8}), cluster_of(8, compute=even), Workload((100,), 1000))
    assert grouped.staleness_mean < 1.1


def test_the_search_finds_the_fewest_servers_that_are_enough() -> None:
    tried = []

    def measured(num_servers: int) -> Throughput:
        tried.append(num_servers)
        return throughput_of(num_servers, min(num_servers, 11) * 10.0)

    assert fewest_servers(measured, 64).num_servers == 11
    assert len(tried) == len(set(tried)) <= 10
    assert fewest_servers(lambda number: throughput_of(number, 10.0 * number), 6).num_servers == 6
    assert fewest_servers(lambda number: throughput_of(number, 5.0), 64).num_servers == 1
    tried.clear()
    assert fewest_servers(measured, 64, 3).num_servers == 11 and fewest_servers(measured, 64, 16).num_servers == 16
    assert min(tried) == 3, "nor fewer than there have to be"


def test_where_hosts_sum_the_search_begins_with_a_server_on_each() -> None:
    cluster = cluster_of(8, network={"workers_per_link": 2})
    config = config_of("async-global", exchange={"host_sums": True})
    assert search_servers(config, cluster, WORKLOAD, ModelledTimes, 12).num_servers >= 4


def throughput_of(num_servers: int, tokens_per_second: float) -> Throughput:
    return Throughput("async", 8, num_servers, 1.0, 1, tokens_per_second, 1, 0, 0, 0, 0, 0, 0, {0: 1}, 0)


def test_more_servers_are_found_where_links_are_slow() -> None:
    cluster = cluster_of(16, network={"bandwidth": 1e8, "worker_bandwidth": 1e10})
    best = search_servers(config_of(accumulate={"global": 16}), cluster, WORKLOAD, ModelledTimes, 20)
    one = measure(config_of(accumulate={"global": 16}), cluster, steps=20)
    assert 1 < best.num_servers < 16
    assert best.target_tokens_per_second > 1.5 * one.target_tokens_per_second


def test_sizes_are_compared() -> None:
    first, second = compare_sizes(config_of(), cluster_of(), WORKLOAD, ModelledTimes, (2, 8), 12)
    assert (first.sync.num_workers, first.asynchronous.num_workers, second.sync.num_workers) == (2, 2, 8)
    assert second.sync.mode == "sync" and second.asynchronous.mode == "async-global"
    assert second.speedup > first.speedup > 1, "the slowest of more workers is slower"
    assert json.loads(json.dumps(second.to_dict()))["async-global"]["num_workers"] == 8


@pytest.mark.parametrize(
    ("mode", "exchange", "expected"),
    [
        ("sync", {}, (4000.0, 0.0)),
        ("async", {}, (4000.0, 4000.0)),
        ("async", {"gradients": "bf16"}, (2000.0, 4000.0)),
        ("async", {"parameters": "bf16"}, (4000.0, 2000.0)),
        ("async", {"gradients": "topk", "topk": 0.1}, (900.0, 4000.0)),
    ],
)
def test_what_travels(mode: str, exchange: dict[str, Any], expected: tuple[float, float]) -> None:
    assert push_and_pull_bytes(config_of(mode, exchange=exchange), 1000) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("mode", "gradients", "expected"), [("sync", "fp32", 4000), ("async", "fp32", 0), ("async", "bf16", 2000)]
)
def test_what_is_pushed_in_place(mode: str, gradients: str, expected: float) -> None:
    config = config_of(mode, exchange={"gradients": gradients})
    assert push_and_pull_bytes(config, 1000, in_place=True)[0] == expected
