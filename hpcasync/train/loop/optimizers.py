"""The optimizer of a block of parameters, by configuration."""

import torch

from hpcasync.config.schema import OptimizerConfig
from hpcasync.ps.server.adam import EagerAdam, EagerAdamW, NesterovAdam, NesterovAdamW
from hpcasync.ps.server.parameter_groups import OptimizerFactory

_KINDS: dict[tuple[str, bool], type[torch.optim.Adam]] = {
    ("adam", False): EagerAdam,
    ("adamw", False): EagerAdamW,
    ("adam", True): NesterovAdam,
    ("adamw", True): NesterovAdamW,
}


def optimizer_factory(config: OptimizerConfig) -> OptimizerFactory:
    """A function that builds Adam or AdamW; the learning rate is set for every update."""
    kind = _KINDS[config.name, config.nesterov]

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return kind(
            parameters,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    return make
