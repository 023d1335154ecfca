"""How long a run is, and its learning rate over that time."""

from typing import Literal

from pydantic import Field, model_validator

from hpcasync.config.section import Section


class ScheduleConfig(Section):
    """The learning rate over time, counted in a unit that compares across modes."""

    name: Literal["inverse_sqrt", "constant", "cosine"] = Field("inverse_sqrt", description="after the warm-up")
    unit: Literal["updates", "batches", "tokens", "epochs"] = Field(
        "updates", description="what `warmup` and `total` count"
    )
    warmup: int = Field(4000, ge=0, description="linear warm-up, in `unit`")
    total: int = Field(
        0,
        ge=0,
        description="cosine only: where the learning rate reaches zero, in `unit`; 0, with unit epochs: stop.epochs",
    )

    @model_validator(mode="after")
    def _check_total(self) -> "ScheduleConfig":
        is_as_long_as_the_run = self.unit == "epochs" and not self.total
        if self.name == "cosine" and self.total <= self.warmup and not is_as_long_as_the_run:
            raise ValueError(f"cosine needs total greater than warmup ({self.warmup}), not {self.total}")
        return self


class StopConfig(Section):
    """Training ends at the first of these that is reached; 0: not used."""

    updates: int = Field(0, ge=0, description="optimizer steps")
    epochs: int = Field(0, ge=0, description="passes over the corpus")
    tokens: int = Field(0, ge=0, description="target tokens applied")
    seconds: float = Field(0, ge=0, description="wall time of training, set-up not counted")
    patience: int = Field(0, ge=0, description="validations in a row without a better score")
    rejected: int = Field(500, ge=0, description="gradients in a row that are not finite; ends with exit code 86")
    diverged: float = Field(
        0, ge=0, description="factor by which the mean loss of 20 updates exceeds the lowest; ends with exit code 86"
    )

    @model_validator(mode="after")
    def _check_any(self) -> "StopConfig":
        if not any((self.updates, self.epochs, self.tokens, self.seconds, self.patience)):
            raise ValueError("training would never end: set one of updates, epochs, tokens, seconds, patience")
        return self
