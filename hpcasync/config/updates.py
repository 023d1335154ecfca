"""The sections of the configuration that say which gradients make an update, and what is done about old ones."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from hpcasync.choices import StalenessPolicy
from hpcasync.config.section import Section


def _check_pushes(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if is_number or (isinstance(value, str) and re.fullmatch(r"([1-9]\d{0,3}\*)?workers", value)):
        return value
    raise ValueError(f"must be a positive number, workers, or a multiple such as 2*workers, not {value}")


class AccumulateConfig(Section):
    """How many gradients are summed: local in a worker before a push, global at the servers before an update."""

    local: int = Field(1, ge=1, le=2**31 - 1, description="micro-batches per push")
    global_: Annotated[int | str, BeforeValidator(_check_pushes)] = Field(
        "workers",
        alias="global",
        description="pushes per update: a number, workers, or a multiple such as 2*workers; always one in async and "
        "async-local, all workers in sync",
    )


class StalenessConfig(Section):
    """What is done about gradients computed from old parameters; asynchronous modes only."""

    limit: int | None = Field(None, ge=0, description="most updates that a gradient may be behind; default: any number")
    policy: StalenessPolicy = Field(
        "wait",
        description="at the limit: updates wait for slow workers; staler gradients are dropped; or the learning rate "
        "is divided by staleness over limit",
    )
    compensation: float = Field(
        0.0, ge=0, description="strength of delay compensation (DC-ASGD); costs servers limit + 1 copies of the shard"
    )
    lookahead: float = Field(
        1.5,
        ge=0,
        description="workers compute with parameters that are ahead by so much of the mean staleness, along the last "
        "update; 1: by all of it",
    )
    fresh_start: float | None = Field(
        None,
        ge=0,
        description="so many times the warm-up of the learning rate, but at most a quarter of the run, workers wait "
        "for the update that their gradient is part of, as in sync: there learning is fastest, and staleness costs "
        "most; 0: never; default: 0.5 with muon, 2 with adam",
    )

    @model_validator(mode="after")
    def _check_lookahead(self) -> "StalenessConfig":
        if self.lookahead and self.compensation:
            raise ValueError("lookahead and compensation both correct for staleness: set lookahead to 0")
        return self

    @model_validator(mode="after")
    def _check_compensation(self) -> "StalenessConfig":
        if self.compensation and (self.limit is None or self.policy == "scale"):
            raise ValueError("compensation keeps the last limit + 1 versions: set limit, with policy wait or drop")
        return self
