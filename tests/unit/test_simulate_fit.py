"""A cluster fitted to timelines: what was put into them comes out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcasync.config.schema import Config, StragglerConfig, parse_config
from hpcasync.errors import UserError
from hpcasync.simulate.cluster import parse_cluster
from hpcasync.simulate.fit import fit_cluster
from hpcasync.simulate.recorded import read_timelines, seconds_per_token
from hpcasync.simulate.server_speed import measure_accumulate, measure_apply, with_measured_speeds
from hpcasync.simulate.times import times_of
from hpcasync.simulate.workload import operations_of

NUM_PARAMETERS = 1_000_000


def write_run(
    run_dir: Path,
    ranks: list[tuple[str, int, list[list[Any]]]],
    *,
    num_parameters: int = NUM_PARAMETERS,
    **config: Any,
) -> Config:
    """A run directory with as much as a fit reads."""
    run_dir.mkdir()
    values: dict[str, Any] = {"data": {"path": "c"}, "stop": {"updates": 1}, "logging": {"timeline": True}}
    values |= {"optimizer": {"name": "adam"}, **config}
    resolved = parse_config(values, "test")
    resolved.save(run_dir / "config.yaml")
    num_workers = sum(role == "worker" for role, _, _ in ranks)
    summary = {"num_parameters": num_parameters, "roles": {"workers": num_workers}}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    for number, (role, index, spans) in enumerate(ranks):
        lines = [{"rank": number, "role": role, "index": index, "host": "h", "opened": 0.0}, *spans]
        text = "\n".join(json.dumps(line) for line in lines)
        (run_dir / f"timeline-{number:04d}.jsonl").write_text(f'\n{text}\n["compute", 1')
    return resolved


def worker_spans(speed: float, seed: int, cv: float = 0.1, slowdown: float = 1.0) -> list[list[Any]]:
    """Spans of a worker that computes 0.02 s and 0.1 ms per token at speed 1; the first ones are slow."""
    generator = np.random.default_rng(seed)
    spans: list[list[Any]] = [["compute", 0.0, 99.0, {"tokens": [10]}] for _ in range(5)]
    for number in range(800):
        tokens = int(generator.integers(100, 1000))
        factor = generator.lognormal(-cv * cv / 2, cv) * slowdown
        spans.append(["compute", float(number), (0.02 + 1e-4 * tokens) * factor / speed, {"tokens": [tokens]}])
        pull = 0.006 if number % 2 else 2e-6  # every second one finds a version that is there already
        spans += [["push", 0.0, 0.004], ["pull", 0.0, pull], ["wait", 0.0, 0.001]]
    return spans


def server_spans() -> list[list[Any]]:
    apply = ["apply", 0.0, 0.0301, {"version": 1, "staleness": [[0, 0], [1, 1]]}]
    return [["accumulate", 0.0, 2e-5, {"worker": 0}], apply] * 50


def test_an_asynchronous_run(tmp_path: Path) -> None:
    ranks = [
        ("server", 0, server_spans()),
        ("worker", 0, worker_spans(1.0, 1)),
        ("worker", 1, worker_spans(0.5, 2)),
    ]
    write_run(tmp_path / "run", ranks, accumulate={"global": 2})
    cluster = fit_cluster(tmp_path / "run")
    compute, server = cluster.compute, cluster.server
    assert cluster.workers == 2
    assert compute.seconds_per_batch == pytest.approx(0.02, rel=0.15)
    assert compute.seconds_per_token == pytest.approx(1e-4, rel=0.05)
    assert compute.speeds == pytest.approx((1.0, 0.5), rel=0.03)
    assert compute.jitter == "lognormal" and compute.cv == pytest.approx(0.1, rel=0.15)
    assert cluster.network.bandwidth == pytest.approx(2 * 4e6 / 0.010, rel=0.02)
    assert not cluster.network.gradients_in_place
    assert server.push_seconds == pytest.approx(2e-5)
    assert not isinstance(server.apply_seconds_per_element, str)
    assert not isinstance(server.accumulate_seconds_per_element, str)
    whole = server.apply_seconds_per_element + 2 * server.accumulate_seconds_per_element
    assert whole * NUM_PARAMETERS + server.update_seconds == pytest.approx(0.0301, rel=0.02)


def test_muons_iterations_are_told_from_the_rest_of_a_step_without_the_corpus(tmp_path: Path) -> None:
    ranks = [("worker", 0, worker_spans(1.0, 1) + [["apply", 0.0, 0.5, {"version": 1}]] * 50)]
    sizes = {"dim": 64, "ffn_dim": 256, "heads": 4, "encoder_layers": 1, "decoder_layers": 1}
    config = write_run(tmp_path / "run", ranks, mode="sync", model=sizes, optimizer={"name": "muon"})
    fitted = fit_cluster(tmp_path / "run")
    per_element, per_operation = fitted.compute.step_seconds_per_element, fitted.server.seconds_per_operation
    assert isinstance(per_element, float) and isinstance(per_operation, float) and per_operation > 0
    assert per_element * NUM_PARAMETERS + per_operation * operations_of(config) == pytest.approx(0.5)


def test_pushes_that_take_no_time_move_nothing(tmp_path: Path) -> None:
    spans = [["push", 0.0, 2e-4] if span[0] == "push" else span for span in worker_spans(1.0, 1)]
    for push in [span for span in spans if span[0] == "push"][::4]:
        push[2] = 0.02  # the server took its core
    write_run(tmp_path / "run", [("server", 0, server_spans()), ("worker", 0, spans)], accumulate={"global": 2})
    network = fit_cluster(tmp_path / "run").network
    assert network.gradients_in_place
    assert network.bandwidth == pytest.approx(4e6 / 0.006, rel=0.02)


def test_a_synchronous_run(tmp_path: Path) -> None:
    """Each worker is the last one of half of the rounds: its allreduce takes 0.01 s then, and longer else."""
    rounds: list[list[list[Any]]] = [[], []]
    for number in range(100):
        for worker in (0, 1):
            wait = 0.05 if worker == number % 2 else 0.0
            rounds[worker] += [["allreduce", 0.0, 0.01 + wait], ["apply", 0.0, 0.005, {"version": number}]]
    ranks = [("worker", worker, worker_spans(1.0, worker) + rounds[worker]) for worker in (0, 1)]
    write_run(tmp_path / "run", ranks, mode="sync")
    cluster = fit_cluster(tmp_path / "run", ("workers=8",))
    assert cluster.workers == 8
    assert cluster.network.bandwidth == pytest.approx(4e6 / 0.01, rel=0.01)
    assert cluster.compute.step_seconds_per_element == pytest.approx(5e-9)


@pytest.mark.parametrize("bucket_seconds", [0.01, 0.09])
def test_buckets_that_were_summed_during_backward_count(tmp_path: Path, bucket_seconds: float) -> None:
    """Three, complete 0.1 and 0.05 s before the end of computing: the last is left, or most of what all take."""
    left = max(bucket_seconds, 3 * bucket_seconds - 0.1)
    spans = [["compute", 0.0, 0.225, {"tokens": [100]}], ["allreduce", 0.0, left], ["apply", 0.0, 0.005, {}]] * 20
    ranks = [("worker", worker, spans) for worker in (0, 1)]
    write_run(tmp_path / "run", ranks, num_parameters=3 << 22, mode="sync")
    network = fit_cluster(tmp_path / "run").network
    assert network.bandwidth == pytest.approx(4 * (1 << 22) / bucket_seconds)


def test_local_accumulation_is_part_of_a_span(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    tokens = generator.integers(100, 1000, (300, 4)).sum(1).tolist()
    spans: list[list[Any]] = [["compute", 0.0, 4 * 0.05 + 1e-4 * total, {"tokens": [total]}] for total in tokens]
    spans += [["push", 0.0, 0.01], ["pull", 0.0, 0.01]] * 9
    ranks = [("server", 0, server_spans()), ("worker", 0, spans)]
    write_run(tmp_path / "run", ranks, mode="async-local", accumulate={"local": 4})
    compute = fit_cluster(tmp_path / "run").compute
    assert compute.seconds_per_batch == pytest.approx(0.05, rel=1e-6)
    assert compute.seconds_per_token == pytest.approx(1e-4, rel=1e-6)
    assert compute.jitter == "none"


def test_recorded_times_and_the_straggler(tmp_path: Path) -> None:
    """A slowed-down worker is recorded as it is without that, and slowed down again where the configuration says so."""
    spans = [worker_spans(1.0, worker, slowdown=3.0 if worker == 1 else 1.0) for worker in (0, 1)]
    ranks = [("worker", worker, spans[worker]) for worker in (0, 1)]
    config = write_run(tmp_path / "run", ranks, straggler={"worker": 1, "slowdown": 3.0})
    recorded = seconds_per_token(read_timelines(tmp_path / "run"))
    assert [len(times) for times in recorded] == [800, 800]
    assert np.mean(recorded[1]) == pytest.approx(np.mean(recorded[0]), rel=0.1)
    cluster = parse_cluster({"workers": 2, "compute": {"recorded": str(tmp_path / "run")}}, "test")
    even, uneven = (times_of(cluster, straggler)(cluster) for straggler in (StragglerConfig(), config.straggler))
    drawn = [times.seconds(worker, 100, 0.0) for times in (even, uneven) for worker in (0, 1)]
    assert drawn[0] == drawn[2] and drawn[3] == pytest.approx(3 * drawn[1])
    assert drawn[0] / 100 in recorded[0]
    with pytest.raises(UserError, match=r"straggler.worker=1, but workers are 0 to 0"):
        times_of(cluster.changed(workers=1), config.straggler)


def test_runs_that_cannot_be_fitted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the configuration"):
        fit_cluster(tmp_path)
    write_run(tmp_path / "bare", [("server", 0, server_spans())])
    with pytest.raises(UserError, match=r"train with logging.timeline=true"):
        fit_cluster(tmp_path / "bare")
    write_run(tmp_path / "idle", [("worker", 0, worker_spans(1.0, 1)), ("worker", 1, [])])
    with pytest.raises(UserError, match="worker 1 computed too little"):
        fit_cluster(tmp_path / "idle")
    write_run(tmp_path / "serverless", [("worker", 0, worker_spans(1.0, 1)), ("server", 0, [])])
    with pytest.raises(UserError, match=r"no '(push|apply)' spans"):
        fit_cluster(tmp_path / "serverless")
    (tmp_path / "serverless" / "summary.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*summary.json"):
        fit_cluster(tmp_path / "serverless")


def test_measured_speeds_take_the_place_of_the_word(tmp_path: Path) -> None:
    config = parse_config({"data": {"path": "c"}, "stop": {"updates": 1}}, "test")
    assert 0 < measure_accumulate() < 1e-6
    assert 0 < measure_apply(config.optimizer) < 1e-5
    described = parse_cluster({"server": {"apply_seconds_per_element": "measured"}}, "test")
    measured = with_measured_speeds(described, config.optimizer).server
    assert isinstance(measured.apply_seconds_per_element, float)
    assert measured.accumulate_seconds_per_element == described.server.accumulate_seconds_per_element
