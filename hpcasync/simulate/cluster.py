"""The description of a cluster: how long computing, moving and applying take on it.

A cluster file is a YAML mapping as strict as the training configuration: an unknown key is refused and the nearest one
offered. Nothing here is measured; `hpcasync simulate --fit RUN_DIR` makes a description from a real run.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from hpcasync.config.section import Section
from hpcasync.config.strict import UserPath, apply_overrides, read_values, validate

MOST_WORKERS = 4096
# Stands for a number that is measured on this machine before the simulation.
MEASURED = "measured"
# With gradients, each of them is computed here, one after the other.
MOST_WORKERS_WITH_GRADIENTS = 64


class StallsConfig(Section):
    """Times in which workers do not compute: other users, checkpoints of a file system, throttling."""

    every_seconds: float = Field(0.0, ge=0, description="from the start of a stall to that of the next; 0: none")
    seconds: float = Field(0.0, ge=0, description="length of a stall")
    workers: tuple[int, ...] | None = Field(None, description="workers that stall; default: all, at times of their own")

    @model_validator(mode="after")
    def _check_length(self) -> "StallsConfig":
        if self.every_seconds and self.seconds >= self.every_seconds:
            raise ValueError(f"seconds ({self.seconds:g}) must be less than every_seconds ({self.every_seconds:g})")
        if self.seconds and not self.every_seconds:
            raise ValueError("seconds needs every_seconds")
        return self


class ComputeConfig(Section):
    """Forward and backward passes of a micro-batch on a worker."""

    seconds_per_batch: float = Field(0.0, ge=0, description="part of the time that does not depend on the batch")
    seconds_per_token: float = Field(1e-4, ge=0, description="time per target token")
    jitter: Literal["none", "lognormal", "pareto"] = Field(
        "none", description="random factor of mean 1 on each batch's time; pareto has a heavy tail"
    )
    cv: float = Field(0.0, ge=0, description="lognormal: standard deviation of the factor")
    tail: float = Field(2.5, gt=1, description="pareto: shape; the smaller, the heavier the tail")
    speeds: tuple[float, ...] = Field((1.0,), min_length=1, description="speed of each worker, repeated in turn")
    stalls: StallsConfig = StallsConfig()
    recorded: UserPath | None = Field(
        None, description="run directory with timelines: times per token are drawn from it instead of the keys above"
    )
    step_seconds_per_element: float | None = Field(
        None, ge=0, description="sync: optimizer step of a worker, per parameter; default: as a server's"
    )

    @model_validator(mode="after")
    def _check(self) -> "ComputeConfig":
        if any(speed <= 0 for speed in self.speeds):
            raise ValueError(f"speeds must be greater than 0, not {list(self.speeds)}")
        if self.recorded is None and not self.seconds_per_batch + self.seconds_per_token:
            raise ValueError("computing would take no time: set seconds_per_token or seconds_per_batch")
        if bool(self.cv) != (self.jitter == "lognormal"):
            raise ValueError(
                f"cv goes with jitter lognormal, and must be positive then (jitter {self.jitter}, cv {self.cv:g})"
            )
        return self


class NetworkConfig(Section):
    """Links that carry one transfer after the other in each direction."""

    latency_seconds: float = Field(5e-6, ge=0, description="of a message, one way")
    bandwidth: float = Field(12.5e9, gt=0, description="of a server's link, in bytes per second and direction")
    worker_bandwidth: float | None = Field(None, gt=0, description="of a worker's link; default: as a server's")
    workers_per_link: int = Field(1, ge=1, description="workers that share one link (those of a node)")
    gradients_in_place: bool = Field(
        False, description="servers read fp32 gradients where they are computed, as on one host: a push moves nothing"
    )


class ServerConfig(Section):
    """A server's work; an element is a parameter of its shard."""

    accumulate_seconds_per_element: float | Literal["measured"] = Field(
        2.5e-10, description="adding a push to the sum; measured: on this machine, before the simulation"
    )
    apply_seconds_per_element: float | Literal["measured"] = Field(
        9e-10, description="optimizer step and publication; measured: on this machine"
    )
    seconds_per_operation: float | Literal["measured"] = Field(
        5e-12, description="of Muon's iterations, also by workers of sync; measured: on this machine"
    )
    push_seconds: float = Field(5e-5, ge=0, description="taking a push, apart from its elements")
    update_seconds: float = Field(1e-4, ge=0, description="an update, apart from its elements")

    @model_validator(mode="after")
    def _check_not_negative(self) -> "ServerConfig":
        for name in ("accumulate_seconds_per_element", "apply_seconds_per_element", "seconds_per_operation"):
            value = getattr(self, name)
            if not isinstance(value, str) and value < 0:
                raise ValueError(f"{name} must not be negative (given: {value!r})")
        return self


class ForcedStalenessConfig(Section):
    """Staleness by decree in mode sync, to tell its effect on learning from everything else that asynchrony changes."""

    updates: int = Field(0, ge=0, description="sync: every gradient is computed from parameters so many updates old")
    warmup: int = Field(0, ge=0, description="updates over which that grows linearly from 0; 0: from the start")

    @model_validator(mode="after")
    def _check_warmup(self) -> "ForcedStalenessConfig":
        if self.warmup and not self.updates:
            raise ValueError("warmup needs updates")
        return self


class ClusterConfig(Section):
    """A cluster. Servers are those of the training configuration, all alike."""

    seed: int = Field(1, ge=0, description="of all random times; that of training is the configuration's")
    workers: int = Field(4, ge=1, le=MOST_WORKERS, description="workers; with gradients at most 64")
    compute: ComputeConfig = ComputeConfig()
    network: NetworkConfig = NetworkConfig()
    server: ServerConfig = ServerConfig()
    forced_staleness: ForcedStalenessConfig = ForcedStalenessConfig()

    @model_validator(mode="after")
    def _check_stalls(self) -> "ClusterConfig":
        unknown = [worker for worker in self.compute.stalls.workers or () if not 0 <= worker < self.workers]
        if unknown:
            raise ValueError(f"compute.stalls.workers names {unknown}, but workers are 0 to {self.workers - 1}")
        return self

    def changed(self, **values: Any) -> "ClusterConfig":
        """A copy with other values at the top level.

        Raises:
            UserError: they do not fit the others.
        """
        return validate(ClusterConfig, {**self.model_dump(), **values}, "the cluster")

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load_cluster(path: Path | None, overrides: tuple[str, ...] = ()) -> ClusterConfig:
    """Read a cluster file, or the defaults where there is none, and apply `key=value` overrides.

    Raises:
        UserError: the file is missing or no YAML mapping, a key is unknown, or a value does not fit.
    """
    values = {} if path is None else read_values(path, ClusterConfig)
    return parse_cluster(values, "the cluster" if path is None else str(path), overrides)


def parse_cluster(values: dict[str, Any], source: str, overrides: tuple[str, ...] = ()) -> ClusterConfig:
    """Validate a mapping after `key=value` overrides; `source` is named in errors.

    Raises:
        UserError: a key is unknown, or a value does not fit.
    """
    apply_overrides(values, overrides, ClusterConfig)
    return validate(ClusterConfig, values, source, overrides, "cluster.")
