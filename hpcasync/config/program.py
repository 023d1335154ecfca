"""The configuration of a program of the user's own that has joined a job (`hpcasync.join`)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from hpcasync.config.schedule import StopConfig
from hpcasync.config.schema import RunConfig
from hpcasync.config.strict import UserPath, validate
from hpcasync.config.validation import ValidationConfig


class ProgramStopConfig(StopConfig):
    """How long a program trains; `Job.share` says so, too."""

    @model_validator(mode="after")
    def _check_any(self) -> "ProgramStopConfig":
        return self


class ProgramConfig(RunConfig):
    """What a program may set: the sections of `hpcasync train` but those of the model, its data and its optimizer."""

    run: UserPath = Field(description="the run directory")
    stop: ProgramStopConfig = ProgramStopConfig()
    validation: ValidationConfig = ValidationConfig(score=False)
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="whether the program's losses are means over what a batch weighs, or sums"
    )
    schedule_per: Literal["step", "batch", "update", "epoch"] = Field(
        "step",
        description="how often the scheduler makes a step; step: for each step of a worker, as many as an update has; "
        "batch: likewise for batches",
    )
    sums_during_backward: bool = Field(
        False,
        description="mode sync: gradients are summed while backward makes them, for a program that leaves them alone "
        "between the one backward of a batch and the step",
    )
    fresh_updates: int | None = Field(
        None, ge=0, description="first updates that workers wait for, as in sync; default: a tenth of the run"
    )

    @model_validator(mode="after")
    def _check_what_is_there(self) -> "ProgramConfig":
        if self.staleness.fresh_start is not None:
            raise ValueError("staleness.fresh_start counts a schedule's warm-up: for a program set fresh_updates")
        if self.sums_during_backward and self.mode != "sync":
            raise ValueError(f"sums_during_backward is of mode sync, and mode is {self.mode}")
        if self.exchange.overlap != "none":
            raise ValueError("exchange.overlap must be none: what a gradient weighs is known when it is complete")
        if self.validation.score or self.stop.patience:
            raise ValueError(
                "validation.score and stop.patience are of translations: ask job.should_validate in the program"
            )
        return self

    @model_validator(mode="after")
    def _choose(self) -> "ProgramConfig":
        if self.roles.server_device == "auto":
            # A program's own optimizer has been tried by servers on CPUs alone.
            object.__setattr__(self, "roles", self.roles.model_copy(update={"server_device": "cpu"}))
        if self.exchange.pull == "auto":
            # How much staleness a program's own optimizer bears is not known.
            object.__setattr__(self, "exchange", self.exchange.model_copy(update={"pull": "handled"}))
        return self

    @property
    def output_dir(self) -> Path:
        return self.run


def program_config(run: str | Path, settings: Mapping[str, Any], **values: Any) -> ProgramConfig:
    """A program's configuration from dotted keys, as in `{"roles.servers": 2}`.

    Raises:
        UserError: naming the key, its value and, for an unknown key, the nearest valid one.
    """
    sections: dict[str, Any] = {
        "run": str(run),
        "name": re.sub(r"[^\w.+-]", "-", Path(run).name) or "run",
        "validation": {"score": False},
    }
    for key, value in [*values.items(), *settings.items()]:
        *parents, last = key.split(".")
        section = sections
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return validate(ProgramConfig, sections, "hpcasync.join")
