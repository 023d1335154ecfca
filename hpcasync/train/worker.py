"""The training loop of a worker, the same in every mode."""

import torch

from hpcasync.train.exchange import Exchange
from hpcasync.train.step import GradientStep


def run_worker(step: GradientStep, exchange: Exchange, parameters: torch.Tensor, gradient: torch.Tensor) -> None:
    """Train until the exchange is finished.

    Args:
        step: computes gradients.
        exchange: what the mode is.
        parameters: [num_elements] float32 that the model's parameters are views of.
        gradient: [num_elements] float32 that `step` sums gradients into.
    """
    exchange.pull(parameters)
    while not exchange.is_finished:
        contribution = step.run(exchange.draw)
        exchange.push(gradient, contribution)
        exchange.pull(parameters)
