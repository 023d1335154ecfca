"""A cluster description fitted to the timelines of a real run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcasync.config.schema import Config, load_config
from hpcasync.errors import UserError, describe
from hpcasync.simulate.cluster import ClusterConfig, parse_cluster
from hpcasync.simulate.recorded import RankTimes, read_timelines
from hpcasync.simulate.server_speed import measure_accumulate, measure_operation
from hpcasync.simulate.synchronous import num_buckets
from hpcasync.simulate.timing import BACKWARD_SHARE
from hpcasync.simulate.workload import operations_of, push_and_pull_bytes

# Not to be told from the time of the elements by one run; as in `simulate.cluster`.
_UPDATE_SECONDS = 1e-4
# Of a long pull: one that is shorter moves nothing.
_MOVING_SHARE = 0.1
# Of a pull of as many bytes: faster pushes than copies can be leave gradients in place. By medians: a rank that rings a
# server without a core of its own may lose its own to it.
_COPYING_SHARE = 0.5


def fit_cluster(run_dir: Path, overrides: tuple[str, ...] = ()) -> ClusterConfig:
    """The cluster that a run with `logging.timeline` ran on, as far as its times tell.

    Computing: seconds per token and per batch by least squares over all workers, a speed for each worker, and the
    spread of what remains as lognormal jitter. A synchronous run tells the bandwidth of its allreduce, an asynchronous
    one that of pushes and pulls and the servers' speed. Muon's iterations are taken to be as fast as here.

    Args:
        overrides: `key=value` on what was fitted.

    Raises:
        UserError: the run is not complete or has no timelines.
    """
    config, summary = load_config(run_dir / "config.yaml"), _read_summary(run_dir)
    ranks = read_timelines(run_dir)
    num_elements = int(summary["num_parameters"])
    compute = _fit_compute(ranks, config.accumulate.local)
    operations = operations_of(config)
    per_operation = measure_operation() if operations else 0.0
    server = {"seconds_per_operation": per_operation} if operations else {}
    if config.mode == "sync":
        network = _fit_allreduce(ranks, config, num_elements)
        seconds = _mean(ranks, "apply") - per_operation * operations / summary["roles"]["workers"]
        compute["step_seconds_per_element"] = max(0.0, seconds) / num_elements
    else:
        network = _fit_transfers(ranks, config, num_elements)
        server |= _fit_server(ranks, config, num_elements, per_operation * operations / config.num_servers)
    values = {"workers": summary["roles"]["workers"], "compute": compute, "network": network, "server": server}
    return parse_cluster(values, f"the cluster fitted to {run_dir}", overrides)


def _fit_compute(ranks: Sequence[RankTimes], num_local: int) -> dict[str, Any]:
    workers = sorted((rank for rank in ranks if rank.role == "worker"), key=lambda rank: rank.index)
    idle = [rank.index for rank in workers if not rank.computed]
    if idle:
        raise UserError(f"worker {idle[0]} computed too little to tell its speed: fit to a longer run")
    samples = [np.asarray(rank.computed, np.float64) for rank in workers]
    # Speed and line are told apart by turns: the line for speeds as they are, then the speeds for the line.
    speeds = np.ones(len(workers))
    for _ in range(20):
        scaled = np.concatenate([rows * (1.0, speed) for rows, speed in zip(samples, speeds, strict=True)])
        per_batch, per_token = _fit_line(scaled[:, 0], scaled[:, 1], num_local)
        expected = [per_batch * num_local + per_token * rows[:, 0] for rows in samples]
        speeds = np.array([line.sum() / rows[:, 1].sum() for line, rows in zip(expected, samples, strict=True)])
        speeds /= speeds.max()
    factors = np.concatenate(
        [rows[:, 1] * speed / line for line, rows, speed in zip(expected, samples, speeds, strict=True)]
    )
    # Jitter is drawn for each batch; the sum of several is steadier.
    cv = float(factors.std() / factors.mean()) * num_local**0.5
    jitter = {"jitter": "lognormal", "cv": round(cv, 4)} if cv >= 1e-3 else {}
    return {
        "seconds_per_batch": float(per_batch * factors.mean()),
        "seconds_per_token": float(per_token * factors.mean()),
        "speeds": [round(float(speed), 4) for speed in speeds],
        **jitter,
    }


def _fit_line(tokens: np.ndarray, seconds: np.ndarray, num_local: int) -> tuple[float, float]:
    """Least squares of seconds = per_batch · num_local + per_token · tokens, neither negative."""
    matrix = np.stack([np.full_like(tokens, num_local), tokens], axis=1)
    per_batch, per_token = np.linalg.lstsq(matrix, seconds, rcond=None)[0]
    if per_batch < 0:
        return 0.0, float(tokens @ seconds / (tokens @ tokens))
    if per_token < 0:
        return float(seconds.mean() / num_local), 0.0
    return float(per_batch), float(per_token)


def _fit_allreduce(ranks: Sequence[RankTimes], config: Config, num_elements: int) -> dict[str, float]:
    """The last worker of a round waits for nobody: its allreduce is the shortest, and takes the time of moving.

    But for what has been moved during backward: see `SynchronousCluster`. Of B buckets of which each takes r, the last
    ends r after the backward pass; or, where moving takes longer, all of them end B * r after the first was complete.
    """
    num_workers = len(ranks)
    if num_workers == 1:
        return {}
    rounds = zip(*(rank.seconds.get("allreduce", ()) for rank in ranks), strict=False)
    seconds = float(np.mean([min(durations) for durations in rounds]))
    if config.precision != "fp16":
        buckets, num_batches = num_buckets(num_elements), config.accumulate.local
        computing = float(np.mean([taken for rank in ranks for _, taken in rank.computed])) / num_batches
        beside = BACKWARD_SHARE * computing * (1 - 1 / buckets)
        seconds = min(buckets * seconds, seconds + beside)
    num_bytes, _ = push_and_pull_bytes(config, num_elements)
    return {"bandwidth": float(2 * (num_workers - 1) / num_workers * num_bytes / seconds), "latency_seconds": 0.0}


def _fit_transfers(ranks: Sequence[RankTimes], config: Config, num_elements: int) -> dict[str, float | bool]:
    push_bytes, pull_bytes = push_and_pull_bytes(config, num_elements)
    pushes, pulls = _durations(ranks, "push"), _long_pulls(ranks)
    typical_push, typical_pull = np.median(pushes) / push_bytes, np.median(pulls) / pull_bytes
    if config.exchange.gradients == "fp32" and typical_push < _COPYING_SHARE * typical_pull:
        return {"bandwidth": pull_bytes / float(pulls.mean()), "latency_seconds": 0.0, "gradients_in_place": True}
    return {"bandwidth": (push_bytes + pull_bytes) / float(pushes.mean() + pulls.mean()), "latency_seconds": 0.0}


def _long_pulls(ranks: Sequence[RankTimes]) -> np.ndarray:
    """Durations of pulls that move something. One that finds the version which its worker has takes microseconds."""
    durations = _durations(ranks, "pull")
    long: np.ndarray = durations[durations > _MOVING_SHARE * np.quantile(durations, 0.9)]
    return long


def _fit_server(
    ranks: Sequence[RankTimes], config: Config, num_elements: int, matrix_seconds: float
) -> dict[str, float]:
    """The time of an update is that of its sum and of Muon's matrices, with the speed of this machine, and the rest."""
    accumulate = measure_accumulate()
    servers = [rank for rank in ranks if rank.role == "server"]
    shard = num_elements / config.num_servers
    # Gradients are read in the update, or before it while a server has nothing else to do.
    reads = sum(sum(rank.seconds.get("read", ())) for rank in servers)
    seconds = _mean(servers, "apply") + reads / len(_durations(servers, "apply"))
    num_pushes = np.mean([number for rank in servers for number in rank.num_pushes])
    apply = (seconds - _UPDATE_SECONDS - matrix_seconds) / shard - float(num_pushes) * accumulate
    return {
        "accumulate_seconds_per_element": accumulate,
        "apply_seconds_per_element": max(0.0, float(apply)),
        "push_seconds": _mean(servers, "accumulate"),
        "update_seconds": _UPDATE_SECONDS,
    }


def _mean(ranks: Sequence[RankTimes], activity: str) -> float:
    """Mean duration; medians would leave out waits that are part of every long run."""
    return float(_durations(ranks, activity).mean())


def _durations(ranks: Sequence[RankTimes], activity: str) -> np.ndarray:
    durations = [duration for rank in ranks for duration in rank.seconds.get(activity, ())]
    if not durations:
        raise UserError(f"the timelines have no {activity!r} spans: fit to a longer run")
    return np.array(durations)


def _read_summary(run_dir: Path) -> dict[str, Any]:
    try:
        summary = json.loads((run_dir / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {run_dir}/summary.json: {describe(error, 'fit to a run that has ended')}"
        ) from error
    if not isinstance(summary, dict) or not {"num_parameters", "roles"} <= summary.keys():
        raise UserError(f"{run_dir}/summary.json is none of `hpcasync train`")
    return summary
