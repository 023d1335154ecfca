"""The function that check_engine.py minimises, and the sizes of job.

The gradient of a batch (ticket t, n tokens) at parameters x is n (x - c_t): it names both.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcasync.choices import GradientFormat, ParameterFormat, PullPolicy, StalenessPolicy, WindowKind
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.protocol.updates import Update
from hpcasync.ps.transport.link import LinkOptions

NUM_ELEMENTS = 20_011
OPTIMIZER = OptimizerConfig(name="adam", learning_rate=0.05, clip_norm=1.0, nesterov=False)
TOPK = 0.1
COMPENSATION = 0.3
FIRST_VERSION = 7  # as if the run had been resumed
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Scenario:
    """A size of job, and what happens in it."""

    num_servers: int
    num_workers: int
    pushes_per_update: int
    num_tickets: int = 40
    num_slots: int = 2
    pull: PullPolicy = "latest"
    stop_after: int = 0
    stop_in_group: bool = False  # not before another push has come
    rejected: frozenset[int] = frozenset()
    num_nodes: int = 1
    limit: int | None = None
    policy: StalenessPolicy = "wait"
    is_compensated: bool = False
    lookahead: float = 0.0
    gradients: GradientFormat = "fp32"
    parameters: ParameterFormat = "fp32"
    window: WindowKind = "mpi"
    host_sums: bool = False

    @property
    def link_options(self) -> LinkOptions:
        return LinkOptions(
            self.num_slots,
            gradients=self.gradients,
            topk=TOPK,
            parameters=self.parameters,
            window=self.window,
            host_sums=self.host_sums,
        )


def start_vector() -> Vector:
    return np.linspace(-1, 1, NUM_ELEMENTS, dtype=np.float32)


def num_tokens(ticket: int) -> int:
    return 1 + ticket % 3


def gradient_of(scenario: Scenario, ticket: int, parameters: Vector) -> Vector:
    centre = np.sin(np.arange(NUM_ELEMENTS) * 0.01 + ticket).astype(np.float32)
    if scenario.gradients == "topk":
        # What is sent hangs on which of two neighbours is larger: the replay must know the very bits.
        parameters = start_vector()
    return np.asarray(np.float32(num_tokens(ticket)) * (parameters - centre), np.float32)


def rate(version: int) -> float:
    return OPTIMIZER.learning_rate / version


def rate_factor(scenario: Scenario, update: Update) -> float:
    if scenario.limit is None or scenario.policy != "scale":
        return 1.0
    factors = [(min(1.0, max(1, scenario.limit) / max(1, stale))) for stale in update.staleness]
    tokens = [push.record.num_tokens for push in update.pushes]
    return sum(map(float.__mul__, factors, map(float, tokens))) / sum(tokens)
