"""The configuration of a training run: one schema, strict keys, `key=value` overrides, a digest.

Every rank resolves the same file and overrides; `Config.digest` is what ranks compare before training starts.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from hpcasync.choices import PullPolicy
from hpcasync.config.data import DataConfig
from hpcasync.config.exchange import ExchangeConfig
from hpcasync.config.model import ModelConfig
from hpcasync.config.optimizer import OptimizerConfig, UpdateConfig
from hpcasync.config.records import LoggingConfig
from hpcasync.config.roles import PER_DEVICE, RolesConfig
from hpcasync.config.schedule import ScheduleConfig, StopConfig
from hpcasync.config.section import Section
from hpcasync.config.strict import UserPath, read_values, validate
from hpcasync.config.updates import AccumulateConfig, StalenessConfig
from hpcasync.config.validation import CheckpointConfig, ValidationConfig
from hpcasync.errors import UserError

Mode = Literal["sync", "async", "async-local", "async-global", "async-combined"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
SyncCompression = Literal["none", "bf16", "fp16"]
# Times the warm-up. Muon hardly knows staleness (docs/staleness.md).
_FRESH_START_OF_MUON, _FRESH_START_OF_ADAM = 0.5, 2.0
# Part of a run that staleness.fresh_start can be: what is trained as in sync is no faster than sync.
_MOST_FRESH = 0.25


class SyncConfig(Section):
    """How mode sync sums gradients over all workers; buckets of them, while backward makes the rest."""

    backend: Literal["auto", "horovod", "torch"] = Field(
        "auto",
        description="torch: torch.distributed, NCCL on GPUs, gloo on CPUs; auto: Horovod where it is installed",
    )
    compression: SyncCompression = Field(
        "none", description="how gradients are summed; bf16 with torch alone, fp16 loses the smallest ones"
    )


class StragglerConfig(Section):
    """For experiments: one worker that is slower than the others."""

    worker: int | None = Field(None, ge=0, description="the worker, counted from 0; default: none")
    slowdown: float = Field(
        2.0, ge=1, le=1e6, description="how many times as long it takes to compute: it rests in between"
    )


class RunConfig(Section):
    """What every training run has, whatever it trains."""

    name: str = Field("run", min_length=1, pattern=r"^[\w.+-]+$", description="first part of the run directory's name")
    run_dir: UserPath = Field(Path("runs"), description="directory that holds run directories")
    seed: int = Field(1, ge=0, le=2**63 - 1, description="of initial parameters, shuffling and dropout")
    mode: Mode = Field("async-global", description="how gradients are combined")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="of the workers; auto: GPUs, in turn, if there are some; in sync a GPU each"
    )
    roles: RolesConfig = RolesConfig()
    accumulate: AccumulateConfig = AccumulateConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    staleness: StalenessConfig = StalenessConfig()
    sync: SyncConfig = SyncConfig()
    straggler: StragglerConfig = StragglerConfig()
    optimizer: UpdateConfig = UpdateConfig()
    stop: StopConfig
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _check_mode(self) -> "RunConfig":
        local, global_ = self.accumulate.local, self.accumulate.global_
        if self.mode in ("async", "async-global") and local != 1:
            raise ValueError(f"mode {self.mode} pushes every gradient: accumulate.local must be 1, not {local}")
        if self.mode in ("async", "async-local") and global_ not in (1, "workers"):
            raise ValueError(f"mode {self.mode} applies every push: accumulate.global must be 1, not {global_}")
        return self

    @model_validator(mode="after")
    def _check_placement(self) -> "RunConfig":
        if self.has_server_per_device and self.roles.placement == "first":
            raise ValueError(f"roles.servers={PER_DEVICE} puts servers beside workers: roles.placement must be spread")
        return self

    @model_validator(mode="after")
    def _check_wait(self) -> "RunConfig":
        if self.staleness.limit is not None and self.staleness.policy == "wait" and self.exchange.pull == "latest":
            raise ValueError(
                "staleness.policy wait needs workers that wait: exchange.pull must be added, handled or applied"
            )
        return self

    @model_validator(mode="after")
    def _check_sums(self) -> "RunConfig":
        if self.exchange.host_sums and self.staleness.compensation:
            raise ValueError(
                "staleness.compensation corrects single gradients where their shard is, and exchange.host_sums "
                "sums them elsewhere: leave one of them out"
            )
        return self

    @property
    def pull(self) -> PullPolicy:
        """What a worker waits for after a push."""
        assert self.exchange.pull != "auto", "chosen where a configuration is validated"
        return self.exchange.pull

    @property
    def may_serve_on_gpus(self) -> bool:
        """Whether servers are to be on GPUs, where there are some."""
        return self.roles.server_device == "cuda" or (self.roles.server_device == "auto" and self.device != "cpu")

    @property
    def has_server_per_device(self) -> bool:
        """Whether the number of servers is known in a job alone."""
        return self.mode != "sync" and self.roles.servers == PER_DEVICE

    @property
    def num_servers(self) -> int:
        """Ranks that are servers: none in sync.

        Raises:
            UserError: there is one for each device, and this is no job that has devices.
        """
        if self.mode == "sync":
            return 0
        if isinstance(self.roles.servers, str):
            raise UserError(f"roles.servers={PER_DEVICE} is known in a job that trains alone: give a number here")
        return self.roles.servers

    def with_servers(self, num_servers: int) -> Self:
        """The configuration with another number of servers."""
        return self.model_copy(update={"roles": self.roles.model_copy(update={"servers": num_servers})})

    def pushes_per_update(self, num_workers: int) -> int:
        """Gradients that make an update, where so many workers push."""
        if self.mode == "sync":
            return num_workers
        if self.mode in ("async", "async-local"):
            return 1
        if isinstance(self.accumulate.global_, int):
            return self.accumulate.global_
        factor, _, _ = self.accumulate.global_.rpartition("*workers")
        return int(factor or 1) * num_workers

    def is_always_fresh(self, num_workers: int) -> bool:
        """Whether every worker goes on with the update that its push is part of."""
        is_alone = self.pushes_per_update(num_workers) == 1
        return self.mode == "sync" or self.pull == "applied" or (is_alone and self.pull == "handled")

    @property
    def output_dir(self) -> Path:
        """The directory of this run."""
        return self.run_dir / f"{self.name}-{self.mode}-seed{self.seed}"

    @property
    def digest(self) -> str:
        """SHA-256 (16 hexadecimal digits) of the resolved configuration."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration with YAML's types."""
        return self.model_dump(mode="json", by_alias=True)

    def save(self, path: Path) -> None:
        """Write the resolved configuration as YAML."""
        path.write_text(self.to_yaml())

    def to_yaml(self) -> str:
        """The resolved configuration as a YAML file."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


class Config(RunConfig):
    """A run that trains a translation model."""

    precision: Precision = Field(
        "auto",
        description="of the workers' computation; parameters are always fp32; tf32: but not a GPU's products; auto: "
        "bf16 on GPUs that compute in it, else fp32",
    )
    compile: bool = Field(
        False,
        description="compile the Transformer's layers (torch.compile); batches are padded to at most 20 shapes then, "
        "each of which is compiled when it first comes",
    )
    data: DataConfig
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()

    @model_validator(mode="after")
    def _check_precision(self) -> "Config":
        if self.precision == "fp16" and self.exchange.overlap != "none":
            raise ValueError("fp16 unscales the whole gradient before it is pushed: exchange.overlap must be none")
        return self

    @model_validator(mode="after")
    def _choose(self) -> "Config":
        if self.optimizer.name == "auto":
            name = "muon" if self.model.architecture == "transformer" else "adam"
            # Fixed from here on: nobody who reads a configuration, or a saved one, has to choose.
            object.__setattr__(self, "optimizer", self.optimizer.model_copy(update={"name": name}))
        if self.staleness.fresh_start is None:
            start = _FRESH_START_OF_MUON if self.optimizer.name == "muon" else _FRESH_START_OF_ADAM
            object.__setattr__(self, "staleness", self.staleness.model_copy(update={"fresh_start": start}))
        if self.exchange.pull == "auto":
            pull: PullPolicy = "added" if self._bears_staleness else "handled"
            object.__setattr__(self, "exchange", self.exchange.model_copy(update={"pull": pull}))
        return self

    @property
    def _bears_staleness(self) -> bool:
        """Whether training loses nothing, and wins time, where workers compute while the servers make an update."""
        sums = self.mode in ("async-global", "async-combined") and self.accumulate.global_ != 1
        is_bounded = self.staleness.limit is not None
        return self.optimizer.name == "muon" and sums and self.exchange.overlap == "none" and not is_bounded

    @model_validator(mode="after")
    def _check_muon(self) -> "Config":
        if self.optimizer.name == "muon" and self.model.architecture != "transformer":
            raise ValueError(
                "optimizer.name=muon is for the Transformer's layers: take adam with model.architecture=rnn"
            )
        return self

    @model_validator(mode="after")
    def _check_compile(self) -> "Config":
        if self.compile and self.model.architecture != "transformer":
            raise ValueError("compile is for the Transformer's layers: leave it out with model.architecture=rnn")
        if self.compile and self.data.sampling:
            raise ValueError("compile pads batches to few shapes, data.sampling makes sentences of any length")
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> "Config":
        schedule = self.schedule
        if schedule.name == "cosine" and not schedule.total and self.stop.epochs <= schedule.warmup:
            raise ValueError(
                f"schedule.total=0 takes the length of the run: stop.epochs must be greater than schedule.warmup "
                f"({schedule.warmup}), not {self.stop.epochs}"
            )
        return self

    @model_validator(mode="after")
    def _check_patience(self) -> "Config":
        if self.stop.patience and not (self.validation.every and self.validation.score):
            raise ValueError("stop.patience counts validations: set validation.every, and leave validation.score true")
        return self

    def fresh_updates(self, num_workers: int, tokens_per_batch: float, batches_per_epoch: int) -> int:
        """Updates of staleness.fresh_start, where a batch has so many target tokens on average.

        A length in seconds is not known in updates, and limits nothing.
        """
        schedule, stop = self.schedule, self.stop
        batches = self.accumulate.local * self.pushes_per_update(num_workers)
        tokens, epochs = batches * tokens_per_batch, batches / batches_per_epoch
        per_update = {"updates": 1.0, "batches": batches, "tokens": tokens, "epochs": epochs}
        ends = [("updates", stop.updates), ("epochs", stop.epochs), ("tokens", stop.tokens)]
        ends += [(schedule.unit, schedule.total)] if schedule.name == "cosine" else []
        assert self.staleness.fresh_start is not None, "chosen where a Config is validated"
        start = self.staleness.fresh_start * schedule.warmup / per_update[schedule.unit]
        return round(min([start, *(_MOST_FRESH * end / per_update[unit] for unit, end in ends if end)]))


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML configuration and apply `key=value` overrides (dotted keys, YAML values).

    Raises:
        UserError: the file is missing or no YAML mapping, a key is unknown, or a value does not fit.
    """
    return validate(Config, read_values(path, Config, overrides), str(path), overrides)


def parse_config(values: dict[str, Any], source: str) -> Config:
    """Validate a mapping; `source` is named in errors.

    Raises:
        UserError: naming the key, its value and, for an unknown key, the nearest valid one.
    """
    return validate(Config, values, source)
