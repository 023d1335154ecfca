"""Short simulated runs on the tiny corpus."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from hpcasync.config.schema import Config, parse_config
from hpcasync.simulate.cluster import parse_cluster
from hpcasync.simulate.job import run_simulated_training
from hpcasync.simulate.times import times_of

NUM_UPDATES = 8
LAST = f"u{NUM_UPDATES:08d}"
JITTER = {"compute": {"jitter": "lognormal", "cv": 0.5, "seconds_per_token": 0.01}}


class Simulator:
    """Trains on the tiny corpus in a directory of its own."""

    def __init__(self, directory: Path, corpus: Path) -> None:
        self._directory = directory
        self._corpus = corpus
        self._number = 0

    def config(self, **more: Any) -> Config:
        self._number += 1
        model = {"dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.2}
        values: dict[str, Any] = {
            "name": f"run{self._number}",
            "run_dir": str(self._directory),
            "data": {"path": str(self._corpus), "batch_tokens": 120},
            "model": {**model, "max_length": 64},
            "optimizer": {"learning_rate": 0.003, "clip_norm": 1.0, "ema_decay": 0.9, "eps": 1e-5},
            "schedule": {"warmup": 5},
            "staleness": {"fresh_start": 0},
            "stop": {"updates": NUM_UPDATES},
            "validation": {"score": False},
            "logging": {"every": 1, "tensorboard": False},
        }
        staleness = {**values["staleness"], **more.pop("staleness", {})}
        return parse_config({**values, **more, "staleness": staleness}, "test")

    def __call__(
        self,
        *,
        workers: int = 3,
        forced: dict[str, int] | None = None,
        cluster: dict[str, Any] | None = None,
        **more: Any,
    ) -> Config:
        config = self.config(**more)
        assert self.run(config, workers=workers, forced=forced, cluster=cluster) == 0
        return config

    @staticmethod
    def run(
        config: Config,
        *,
        workers: int = 3,
        forced: dict[str, int] | None = None,
        cluster: dict[str, Any] | None = None,
        resume: bool = False,
    ) -> int:
        """Returns the exit code."""
        described = parse_cluster({"workers": workers, "forced_staleness": forced or {}, **(cluster or {})}, "test")
        times = times_of(described, config.straggler)
        return run_simulated_training(config, described, times, num_threads=1, resume=resume)


def records(config: Config, kind: str = "update") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines if line["event"] == kind]


def summary(config: Config) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((config.output_dir / "summary.json").read_text())
    return read


def parameters(config: Config, name: str = LAST) -> dict[str, np.ndarray]:
    return dict(load_file(config.output_dir / "snapshots" / name / "parameters.safetensors"))


def losses(config: Config) -> list[float]:
    return [record["loss"] for record in records(config)]


def assert_same(first: Config, second: Config, name: str = LAST) -> None:
    assert losses(first) == losses(second)
    one, two = parameters(first, name), parameters(second, name)
    assert one.keys() == two.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, two[key], err_msg=key)
