"""The training loop of a worker, the same in every mode."""

import time

import torch

from hpcasync.timeline import Timeline
from hpcasync.train.exchange import Exchange
from hpcasync.train.step import GradientStep


def run_worker(
    step: GradientStep,
    exchange: Exchange,
    parameters: torch.Tensor,
    gradient: torch.Tensor,
    timeline: Timeline,
    *,
    slowdown: float = 1.0,
) -> None:
    """Train until the exchange is finished.

    Args:
        step: computes gradients.
        exchange: what the mode is.
        parameters: [num_elements] float32 that the model's parameters are views of.
        gradient: [num_elements] float32 that `step` sums gradients into.
        timeline: records the computation; what is around it is the exchange's to record.
        slowdown: how many times as long each computation is made to take, for experiments.
    """
    exchange.pull(parameters)
    while not exchange.is_finished:
        tokens: list[int] = []
        with timeline.span("compute", tokens=tokens):
            contribution = step.run(exchange.draw)
            time.sleep((slowdown - 1) * contribution.compute_seconds)
            tokens.append(contribution.target_tokens)
        exchange.push(gradient, contribution)
        exchange.pull(parameters)
