"""Training in virtual time: ordinary training where it should be, the same run twice, a run directory like a real one.

tests/parallel/test_simulate_equivalence.py compares with real jobs.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from simulator import JITTER, LAST, NUM_UPDATES, Simulator, assert_same, losses, parameters, records, summary

from hpcasync.comm.shards import Shard
from hpcasync.config.schema import Config, parse_config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.errors import UserError
from hpcasync.nmt.build import build_model
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.server.apply_group import clip_factor
from hpcasync.ps.server.shard_state import ShardState, blocks_of, squared_norm
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.report.spans import ACTIVITIES, read_timelines, totals
from hpcasync.runs.counters import Counters
from hpcasync.runs.snapshots import list_snapshots
from hpcasync.simulate.cluster import parse_cluster
from hpcasync.simulate.fit import fit_cluster
from hpcasync.simulate.job import run_simulated_training
from hpcasync.simulate.server import SimulatedServer
from hpcasync.simulate.times import times_of
from hpcasync.train.loop.optimizers import make_optimizers, optimizer_factory
from hpcasync.train.loop.schedule import learning_rate
from hpcasync.train.loop.step import GradientStep


def local_training(config: Config) -> tuple[list[float], dict[str, np.ndarray]]:
    """The parts of a worker and a server in a plain loop: losses, averaged parameters."""
    corpus = PreparedCorpus.open(config.data.path)
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    plan = BatchPlan(corpus.train, source, target, batch_tokens=config.data.batch_tokens, seed=config.seed)
    torch.manual_seed(config.seed)
    flat = FlatParameters(model := build_model(config.model, len(source), len(target), source.pad_id, target.pad_id))
    step = GradientStep(config, model, flat, plan)
    state = ShardState(
        flat.parameters, make_optimizers(config.optimizer, model, flat), ema_decay=config.optimizer.ema_decay
    )
    counters, computed = Counters(), []
    for number in range(NUM_UPDATES):
        tickets = iter([number])
        done = step.run(lambda tickets=tickets: next(tickets, None))  # type: ignore[misc]
        counters.num_updates += 1
        rate = learning_rate(config.optimizer, config.schedule, counters)
        scale = 1 / done.num_tokens
        scale *= clip_factor(scale * squared_norm(flat.gradient) ** 0.5, config.optimizer.clip_norm)
        state.apply(blocks_of(flat.gradient), scale=scale, learning_rate=rate, version=number + 1)
        computed.append(done.loss_sum / done.num_tokens)
    assert state.ema is not None
    return computed, flat.named_arrays(state.ema)


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("pull", ["handled", "applied"])
def test_one_worker_is_local_training(simulate: Simulator, mode: str, pull: str) -> None:
    config = simulate(workers=1, mode=mode, exchange={"pull": pull})
    expected, averaged = local_training(config)
    assert losses(config) == expected
    assert expected[-1] < expected[0]
    for name, array in parameters(config).items():
        np.testing.assert_array_equal(array, averaged[name], err_msg=name)
    assert summary(config)["staleness"]["max"] == 0


@pytest.mark.parametrize(
    "more",
    [
        {"mode": "sync"},
        {"mode": "async"},
        {"mode": "async-local", "accumulate": {"local": 2}},
        {"mode": "async-global", "accumulate": {"global": 3}, "roles": {"servers": 2}},
        {"mode": "async-combined", "accumulate": {"local": 2, "global": 2}, "exchange": {"pull": "latest"}},
    ],
    ids=lambda more: more["mode"],
)
def test_bit_for_bit_repeatable_in_every_mode(simulate: Simulator, more: dict[str, Any]) -> None:
    first, second = (simulate(cluster=JITTER, **more) for _ in range(2))
    assert_same(first, second)
    assert records(first) == records(second), "virtual times and staleness too"
    for key in ("staleness", "gradients_pushed", "gradients_applied", "gradients_dropped", "wall_seconds"):
        assert summary(first)[key] == summary(second)[key]
    counts = summary(first)
    assert counts["gradients_pushed"] == counts["gradients_applied"] + counts["gradients_dropped"]


@pytest.mark.parametrize(("workers", "optimizer"), [(2, "auto"), (3, "auto"), (2, "adam"), (3, "adam")])
def test_workers_that_wait_are_allreduce(simulate: Simulator, workers: int, optimizer: str) -> None:
    """accumulate.global = workers, pull applied. Three gradients are summed in the order of arrival, not of workers."""
    more: dict[str, Any] = {"workers": workers, "optimizer": {"name": optimizer, "clip_norm": 1.0, "eps": 1e-5}}
    together = simulate(mode="sync", **more)
    waiting = simulate(mode="async-global", accumulate={"global": workers}, exchange={"pull": "applied"}, **more)
    if workers == 2:
        assert_same(together, waiting)
    np.testing.assert_allclose(losses(together), losses(waiting), 1e-5)
    for name, array in parameters(together).items():
        np.testing.assert_allclose(array, parameters(waiting)[name], 1e-4, 1e-5, err_msg=name)
    assert summary(together)["staleness"] == summary(waiting)["staleness"]


def test_a_fresh_start_is_synchronous_training_and_then_no_more(simulate: Simulator) -> None:
    more: dict[str, Any] = {"schedule": {"name": "constant", "warmup": 3}, "stop": {"updates": 12}}
    together, fresh, stale = (
        simulate(mode=mode, workers=2, accumulate={"global": 2}, staleness={"fresh_start": start}, **more)
        for mode, start in (("sync", 0), ("async-global", 1), ("async-global", 0))
    )
    assert losses(fresh)[:4] == losses(together)[:4] != losses(stale)[:4]
    assert summary(fresh)["staleness"]["max"] == 1 and losses(fresh) != losses(together)


def test_a_fresh_start_is_fresh_though_transfers_run_beside_the_computation(simulate: Simulator) -> None:
    more: dict[str, Any] = {"schedule": {"name": "constant", "warmup": 3}, "exchange": {"overlap": "full"}}
    run = simulate(mode="async-global", workers=2, staleness={"fresh_start": 1}, stop={"updates": 12}, **more)
    staleness = summary(run)["staleness"]
    assert staleness["histogram"]["0"] >= 6 and sum(staleness["histogram"].values()) == 24 and staleness["max"] == 2


@pytest.mark.parametrize("optimizer", ["auto", "adam"])
def test_servers_do_not_change_the_result(simulate: Simulator, optimizer: str) -> None:
    settings = {"name": optimizer, "learning_rate": 0.003, "clip_norm": 0.0}
    one, three = (
        simulate(mode="async-global", accumulate={"global": 2}, roles={"servers": servers}, optimizer=settings)
        for servers in (1, 3)
    )
    assert_same(one, three)


def test_sums_of_hosts_are_what_the_servers_of_hosts_add_up() -> None:
    """Workers 0 and 1 are on the server's host; of the others' sums one travels for each host, and is rounded."""
    exchange = {"host_sums": True, "gradients": "bf16"}
    config = parse_config({"data": {"path": "corpus"}, "stop": {"updates": 1}, "exchange": exchange}, "test")
    shard = Shard(16, 48)
    server = SimulatedServer(
        config, torch.zeros(64), shard, optimizer_factory(config.optimizer), [None, None, 2, 2, 1, 1]
    )
    gradients = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    parts = gradients[:, 16:48]

    def push(*workers: int) -> None:
        for worker in workers:
            server.write(worker, gradients[worker])
            server.accumulate(worker, PushRecord(0, 1, 0.0, 0, 0.0, (worker,)))

    push(0, 2, 4, 1, 3)
    server.exchange()
    expected = parts[0] + parts[1] + parts[4].bfloat16() + (parts[2] + parts[3]).bfloat16()
    assert server.squared_norm() == pytest.approx(float(expected.double().square().sum()), rel=1e-6)
    server.discard()
    push(5)
    server.exchange()
    alone = parts[5].bfloat16().double()
    assert server.squared_norm() == pytest.approx(float(alone.square().sum()), rel=1e-6), "nothing of the group before"


def test_sums_of_hosts_change_nothing_but_the_order_of_adding(simulate: Simulator) -> None:
    more: dict[str, Any] = {"mode": "async-global", "accumulate": {"global": 4}, "roles": {"servers": 2}}
    options: dict[str, Any] = {"workers": 4, "cluster": {"network": {"workers_per_link": 2}}}
    alone, summed, rounded = (
        simulate(**options, **more, exchange={"pull": "applied", **exchange})
        for exchange in ({}, {"host_sums": True}, {"host_sums": True, "gradients": "bf16"})
    )
    np.testing.assert_allclose(losses(summed), losses(alone), 1e-4)
    assert losses(rounded) != losses(summed)
    np.testing.assert_allclose(losses(rounded), losses(alone), 1e-2)


def test_jitter_changes_the_order_and_not_what_synchronous_training_learns(simulate: Simulator) -> None:
    even, uneven = (simulate(mode="sync", cluster=cluster) for cluster in ({}, JITTER))
    assert_same(even, uneven)
    assert summary(even)["wall_seconds"] != summary(uneven)["wall_seconds"]
    even, uneven = (simulate(mode="async", cluster=cluster) for cluster in ({}, JITTER))
    assert losses(even) != losses(uneven)


def test_forced_staleness(simulate: Simulator) -> None:
    fresh, stale = simulate(mode="sync"), simulate(mode="sync", forced={"updates": 2})
    warm = simulate(mode="sync", forced={"updates": 2, "warmup": 4})
    # The first versions have no older ones.
    assert summary(stale)["staleness"]["histogram"] == {"0": 3, "1": 3, "2": 3 * (NUM_UPDATES - 2)}
    assert summary(warm)["staleness"]["histogram"] == {"0": 6, "1": 6, "2": 3 * (NUM_UPDATES - 4)}
    assert summary(stale)["simulated"]["cluster"]["forced_staleness"]["updates"] == 2
    assert losses(fresh)[0] == losses(stale)[0] and losses(fresh)[1:] != losses(stale)[1:]


def test_forced_staleness_is_that_of_a_delayed_gradient(simulate: Simulator) -> None:
    """Delay 1 with one worker: the update of version v + 1 has the gradient at version v - 1, worked out here."""
    config = simulate(mode="sync", workers=1, forced={"updates": 1}, optimizer={"learning_rate": 0.003})
    corpus = PreparedCorpus.open(config.data.path)
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    plan = BatchPlan(corpus.train, source, target, batch_tokens=config.data.batch_tokens, seed=config.seed)
    torch.manual_seed(config.seed)
    flat = FlatParameters(model := build_model(config.model, len(source), len(target), source.pad_id, target.pad_id))
    step = GradientStep(config, model, flat, plan)
    vector = flat.parameters.clone()
    state = ShardState(vector, make_optimizers(config.optimizer, model, flat))
    versions, expected = [vector.clone()], []
    for number in range(NUM_UPDATES):
        flat.parameters.copy_(versions[max(0, number - 1)])
        tickets = iter([number])
        done = step.run(lambda tickets=tickets: next(tickets, None))  # type: ignore[misc]
        rate = learning_rate(config.optimizer, config.schedule, Counters(num_updates=number + 1))
        state.apply(blocks_of(flat.gradient), scale=1 / done.num_tokens, learning_rate=rate, version=number + 1)
        versions.append(vector.clone())
        expected.append(done.loss_sum / done.num_tokens)
    assert losses(config) == expected


@pytest.mark.parametrize(
    "more",
    [
        {"exchange": {"gradients": "bf16", "parameters": "bf16"}},
        {"exchange": {"gradients": "topk", "topk": 0.1}},
        {"staleness": {"limit": 1, "policy": "drop"}},
        {"staleness": {"limit": 1, "policy": "scale"}},
        {"staleness": {"limit": 2, "policy": "wait", "compensation": 0.5, "lookahead": 0.0}},
    ],
    ids=lambda more: str(next(iter(more.values()))),
)
def test_formats_and_staleness_policies(simulate: Simulator, more: dict[str, Any]) -> None:
    plain = simulate(mode="async", cluster=JITTER)
    other = simulate(mode="async", cluster=JITTER, **more)
    assert len(losses(other)) == NUM_UPDATES and losses(plain) != losses(other)
    assert losses(other)[-1] < losses(other)[0]
    limit = more.get("staleness", {}).get("limit", 99)
    if more.get("staleness", {}).get("policy") != "scale":
        assert summary(other)["staleness"]["max"] <= limit


def test_the_run_directory_is_that_of_a_real_run(simulate: Simulator) -> None:
    config = simulate(mode="async-global", accumulate={"global": 2}, validation={"score": True, "every": 4, "beam": 1})
    run_dir = config.output_dir
    snapshots = list_snapshots(run_dir)
    assert [snapshot.num_updates for snapshot in snapshots] == [4, 8]
    walls = [record["wall_seconds"] for record in records(config)]
    assert walls == sorted(walls) and walls[3] == snapshots[0].wall_seconds
    assert [record["num_updates"] for record in records(config, "validation")] == [4, 8]
    assert records(config, "validation")[1]["wall_seconds"] == snapshots[1].wall_seconds
    told = summary(config)
    assert told["wall_seconds"] == pytest.approx(walls[-1])
    assert told["roles"]["workers"] == 3 and told["simulated"]["cluster"]["workers"] == 3
    assert 0 < told["simulated"]["efficiency"] <= 1
    assert (run_dir / "best").is_file() and (run_dir / "last").is_file() and (run_dir / "cluster.yaml").is_file()
    assert (run_dir / "checkpoints" / LAST / "state.json").is_file()


def test_patience_counts_scores_in_no_virtual_time(simulate: Simulator) -> None:
    """A model that does not learn: the first score is the best, two more are no better."""
    validation = {"score": True, "every": 2, "beam": 1, "max_sentences": 2}
    config = simulate(stop={"patience": 2}, validation=validation, optimizer={"learning_rate": 1e-30})
    assert summary(config)["stop_reason"] == "stop.patience=2 validations without improvement"
    assert summary(config)["num_updates"] == 6
    assert [record["is_best"] for record in records(config, "validation")] == [True, False, False]


@pytest.mark.parametrize(
    "more",
    [
        {"mode": "sync"},
        {"mode": "async-global", "accumulate": {"global": 2}, "roles": {"servers": 2}},
        {"mode": "async", "exchange": {"overlap": "full"}},
    ],
    ids=lambda more: more["mode"],
)
def test_timelines_show_virtual_time(simulate: Simulator, more: dict[str, Any]) -> None:
    config = simulate(cluster=JITTER, **more, logging={"timeline": True, "tensorboard": False})
    ranks = read_timelines(config.output_dir)
    servers = [rank for rank in ranks if rank.is_server]
    workers = [rank for rank in ranks if not rank.is_server]
    assert len(workers) == 3 and len(servers) == (config.mode != "sync"), "one server stands for all"
    seconds = max(rank.end for rank in ranks)
    assert seconds >= summary(config)["wall_seconds"] - 2e-6
    for rank in ranks:
        assert rank.start[0] >= 0
        # Written to the microsecond.
        assert (rank.start[1:] >= (rank.start + rank.duration)[:-1] - 2e-6).all(), "one thing after the other"
    efficiency = sum(totals(rank, seconds)["compute"] for rank in workers) / 3
    assert efficiency == pytest.approx(summary(config)["simulated"]["efficiency"], rel=0.02)
    applied = [rank for rank in ranks if "apply" in totals(rank, seconds)]
    for rank in applied:
        assert list(rank.detail[rank.activity == ACTIVITIES.index("apply")]) == list(range(1, NUM_UPDATES + 1))
    assert applied == (servers or workers)


def test_a_fit_to_a_simulated_timeline_finds_the_cluster_again(simulate: Simulator) -> None:
    compute = {"seconds_per_batch": 0.05, "seconds_per_token": 0.01, "speeds": [1, 1, 0.5]}
    cluster = {"compute": compute, "network": {"bandwidth": 1e6, "latency_seconds": 0.0}}
    config = simulate(cluster=cluster, stop={"updates": 150}, logging={"timeline": True, "tensorboard": False})
    fitted = fit_cluster(config.output_dir)
    assert fitted.compute.seconds_per_batch == pytest.approx(0.05, rel=0.01)
    assert fitted.compute.seconds_per_token == pytest.approx(0.01, rel=0.01)
    assert fitted.compute.speeds == pytest.approx((1, 1, 0.5), rel=0.01)
    assert fitted.network.bandwidth == pytest.approx(1e6, rel=0.1)


def test_virtual_time_ends_training(simulate: Simulator) -> None:
    cluster = {"compute": {"seconds_per_batch": 10.0, "seconds_per_token": 0}}
    for mode in ("sync", "async"):
        config = simulate(mode=mode, stop={"seconds": 45}, cluster=cluster)
        assert summary(config)["stop_reason"] == "stop.seconds=45 reached"
        assert summary(config)["num_updates"] == (5 if mode == "sync" else 12)


def test_each_epoch_covers_the_corpus_once(simulate: Simulator) -> None:
    config = simulate(mode="async", stop={"epochs": 1}, cluster=JITTER)
    state = json.loads(next((config.output_dir / "checkpoints").glob("u*/state.json")).read_text())
    counts = summary(config)
    assert state["tickets"]["above"] == [] and state["tickets"]["low"] == counts["num_batches"]
    assert counts["gradients_dropped"] == 0 and counts["stop_reason"] == "end of the corpus"


@pytest.mark.parametrize(
    ("workers", "delay", "more", "expected"),
    [
        (65, 0, {}, "cluster.workers=65: with gradients at most 64"),
        (2, 3, {"mode": "async"}, "forces the staleness of mode=sync"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    simulate: Simulator, workers: int, delay: int, more: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        simulate(workers=workers, forced={"updates": delay}, **more)


def test_a_real_run_is_not_overwritten(simulate: Simulator, tmp_path: Path) -> None:
    config = simulate.config()
    config.output_dir.mkdir(parents=True)
    config.save(config.output_dir / "config.yaml")
    cluster = parse_cluster({"workers": 1}, "test")
    for overwrite, expected in ((False, "holds a run already"), (True, "holds a run that was not simulated")):
        with pytest.raises(UserError, match=expected):
            run_simulated_training(
                config,
                cluster,
                times_of(cluster, config.straggler),
                num_threads=1,
                overwrite=overwrite,
            )
    assert (config.output_dir / "config.yaml").is_file()
