"""Configurations and clusters to simulate."""

from typing import Any

from hpcasync.config.schema import Config, parse_config
from hpcasync.simulate.cluster import ClusterConfig, parse_cluster

MODES: dict[str, dict[str, Any]] = {
    "sync": {},
    "async": {},
    "async-local": {"accumulate": {"local": 3}},
    "async-global": {"accumulate": {"global": 4}},
    "async-combined": {"accumulate": {"local": 2, "global": 3}},
}


def config_of(mode: str = "async-global", **more: Any) -> Config:
    base: dict[str, Any] = {"data": {"path": "corpus"}, "stop": {"updates": 1}, "mode": mode}
    return parse_config({**base, **MODES[mode], **more}, "test")


def cluster_of(workers: int = 4, **more: Any) -> ClusterConfig:
    compute = {"seconds_per_token": 1e-3, "jitter": "lognormal", "cv": 0.3}
    return parse_cluster({"workers": workers, "compute": compute, **more}, "test")
