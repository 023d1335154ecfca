"""The section of the configuration that says how an update steps the parameters."""

from typing import Literal

from pydantic import Field, model_validator

from hpcasync.config.section import Section


class UpdateConfig(Section):
    """What is done around an optimizer step, whatever the optimizer."""

    clip_norm: float = Field(0.0, ge=0, description="global norm of the gradient per token; 0: no clipping")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="averaged parameters, per update; 0: none")


class OptimizerConfig(UpdateConfig):
    """One optimizer step is made per update, on the gradient per target token."""

    name: Literal["auto", "adam", "adamw", "muon"] = Field(
        "auto",
        description="muon: steps the matrices of the Transformer's layers along momentum whose singular values are "
        "made one, and all else as adamw does, at the same rate; adamw: decoupled weight decay; auto: muon for the "
        "Transformer, adam for the RNN",
    )
    learning_rate: float = Field(5e-4, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field(
        (0.9, 0.98), description="decay of the two moments, as [a, b]; Muon has one, of 0.95"
    )
    eps: float = Field(1e-9, gt=0, description="added to the root of the second moment; Muon has none")
    weight_decay: float = Field(0.0, ge=0, description="of all parameters")
    nesterov: bool = Field(
        True,
        description="step along b1 * m + (1 - b1) * gradient, not along the mean m alone: stale gradients do less harm",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="probability mass spread over all pieces")

    @model_validator(mode="after")
    def _check_betas(self) -> "OptimizerConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {list(self.betas)}")
        return self
