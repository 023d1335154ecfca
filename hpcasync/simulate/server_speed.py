"""How fast this machine sums gradients and makes optimizer steps, as a server does."""

import time
from collections.abc import Callable

import torch

from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.server.muon import num_operations, orthogonal
from hpcasync.ps.server.shard_state import ShardState, blocks_of
from hpcasync.simulate.cluster import ClusterConfig
from hpcasync.train.loop.optimizers import optimizer_factory

# Larger than caches.
_ELEMENTS = 1 << 22
# Of a matrix; products of 128 to 1,024 rows are about as fast.
_ROWS = 256
_REPEATS = 3


def with_measured_speeds(cluster: ClusterConfig, optimizer: OptimizerConfig) -> ClusterConfig:
    """The cluster with numbers for every time that is to be "measured"; takes a second on one thread."""
    server = cluster.server.model_dump()
    measures: dict[str, Callable[[], float]] = {
        "accumulate_seconds_per_element": measure_accumulate,
        "apply_seconds_per_element": lambda: measure_apply(optimizer),
        "seconds_per_operation": measure_operation,
    }
    for name, measure in measures.items():
        if server[name] == "measured":
            server[name] = measure()
    return cluster.changed(server=server)


def measure_accumulate() -> float:
    """Seconds per element of adding a float32 gradient to a sum."""
    total, gradient = torch.zeros(_ELEMENTS), torch.ones(_ELEMENTS)
    return _shortest(lambda: total.add_(gradient)) / _ELEMENTS


def measure_apply(optimizer: OptimizerConfig) -> float:
    """Seconds per element of an optimizer step that publishes its parameters."""
    gradient, published = torch.ones(_ELEMENTS), torch.zeros(_ELEMENTS)
    state = ShardState(torch.zeros(_ELEMENTS), optimizer_factory(optimizer), ema_decay=optimizer.ema_decay)
    blocks = blocks_of(gradient)
    step = lambda: state.apply(blocks, scale=1.0, learning_rate=1e-3, version=1, publish=published)  # noqa: E731
    return _shortest(step) / _ELEMENTS


def measure_operation() -> float:
    """Seconds per addition or multiplication of Muon's iterations."""
    matrix = torch.randn(_ROWS, _ROWS, generator=torch.Generator().manual_seed(1))
    return _shortest(lambda: orthogonal(matrix)) / num_operations((_ROWS, _ROWS))


def _shortest(action: Callable[[], object]) -> float:
    """CPU seconds of the shortest run, on this thread alone: others that use the machine only lengthen it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(_REPEATS):
            started = time.thread_time()
            action()
            seconds.append(time.thread_time() - started)
        return min(seconds)
    finally:
        torch.set_num_threads(threads)
