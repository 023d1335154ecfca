"""The optimizer of a block of parameters, by configuration."""

import torch

from hpcasync.config.schema import OptimizerConfig
from hpcasync.ps.server.shard_state import OptimizerFactory


def optimizer_factory(config: OptimizerConfig) -> OptimizerFactory:
    """A function that builds torch's fused Adam or AdamW; the learning rate is set for every update."""
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]

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
