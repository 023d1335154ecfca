"""The training loop of a worker, the same in every mode."""

import time

from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.timeline import Timeline
from hpcasync.train.loop.exchange import Exchange
from hpcasync.train.loop.step import GradientStep


def run_worker(
    step: GradientStep,
    exchange: Exchange,
    flat: FlatParameters,
    timeline: Timeline,
    *,
    slowdown: float = 1.0,
) -> None:
    """Train until the exchange is finished.

    Args:
        flat: parameters and gradient of the model; the exchange may put other vectors in their place.
        timeline: records the computation; what is around it is the exchange's to record.
        slowdown: how many times as long each computation is made to take, for experiments.
    """
    exchange.pull(flat.parameters)
    while not exchange.is_finished:
        tokens: list[int] = []
        with timeline.span("compute", tokens=tokens):
            record = step.run(exchange.draw, exchange.expect_gradient, exchange.next_ticket, version=exchange.version)
            time.sleep((slowdown - 1) * record.compute_seconds)
            tokens.append(record.num_tokens)
        exchange.push(step.gradient, record)
        exchange.pull(flat.parameters)
