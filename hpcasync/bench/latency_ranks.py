"""What the ranks of `hpcasync bench latency` do: one worker pushes, one server updates, both note the time.

    mpirun -n 2 python -m hpcasync.bench.latency_ranks NUM_ELEMENTS NUM_UPDATES COMPUTE_SECONDS

Both ranks are on one host and read the same clock.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mpi4py import MPI

from hpcasync.bench.computation import compute_for
from hpcasync.bench.jobs import RESULT
from hpcasync.comm.mpi import library_name
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.engine import Engine, EngineOptions, EngineSetup
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Update
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.timeline import Timeline
from hpcasync.train.loop.optimizers import optimizer_factory

_WARM_UP = 3


class _Times(MinimalObserver, Timeline):
    """When the server saw each push, began and ended each step, and had told the worker."""

    def __init__(self, num_updates: int) -> None:
        super().__init__(1e-3, num_updates)
        self.seen: list[float] = []
        self.stepped: list[tuple[float, float]] = []
        self.told: list[float] = []

    @contextmanager
    def span(self, activity: str, **details: object) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if activity == "apply":
            self.stepped.append((started, time.perf_counter()))

    def after_arrival(self, worker: int) -> None:
        self.seen.append(time.perf_counter())

    def after_update(self, update: Update, learning_rate: float) -> None:
        self.told.append(time.perf_counter())
        super().after_update(update, learning_rate)

    def final_request(self) -> None:
        return None


def main(num_elements: int, num_updates: int, compute_seconds: float) -> None:
    """Run, and print the medians of the parts of an update's latency, in seconds."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    flat = FlatParameters(torch.nn.ParameterList([torch.zeros(num_elements)]))
    times = _Times(num_updates + _WARM_UP)
    options = EngineOptions(pull="applied")
    setup = EngineSetup(timeline=times)
    engine = Engine(comm, flat.parameters, optimizer_factory(OptimizerConfig(name="adam")), options, setup)
    steps = None
    if engine.is_server:
        engine.serve(times, times)
    else:
        engine.start()
        steps = _work(engine, flat, num_updates + _WARM_UP, compute_seconds)
    everybody = comm.gather(steps, root=0)
    if everybody is not None:
        [steps] = [steps for steps in everybody if steps is not None]
        print(RESULT + json.dumps({"mpi": library_name(), **_parts(steps, times)}), flush=True)
    engine.close()


def _work(engine: Engine, flat: FlatParameters, num_steps: int, compute_seconds: float) -> list[list[float]]:
    """For each step: when its push began and ended, when its wait ended, when its pull ended."""
    client = engine.client
    client.place_gradients(flat)
    version, steps = client.pull(flat.parameters), []
    for step in range(num_steps):
        compute_for(compute_seconds)
        flat.gradient.fill_(1e-3)  # as a backward pass would, in this core's cache
        moments = [time.perf_counter()]
        client.push(flat.gradient, PushRecord(version, 1, 0.0, 0, 0.0, (step,)), is_checked=True)
        moments.append(time.perf_counter())
        # The wait of the last step ends with the run, or with its update: both have been published.
        client.wait()
        moments.append(time.perf_counter())
        version = client.pull(flat.parameters)
        moments.append(time.perf_counter())
        steps.append(moments)
    client.finish()
    return steps


def _parts(steps: list[list[float]], times: _Times) -> dict[str, float]:
    samples: dict[str, list[float]] = {
        "push": [],
        "until seen": [],
        "decisions": [],
        "step": [],
        "publication": [],
        "until noticed": [],
        "pull": [],
        "total": [],
    }
    moments = zip(steps, times.seen, times.stepped, times.told, strict=True)
    for (began, pushed, noticed, pulled), seen, (step_began, step_ended), told in list(moments)[_WARM_UP:]:
        # A rank may see a word before the other, that wrote it, has noted the time.
        announced, published = min(pushed, seen), min(told, noticed)
        parts = (
            announced - began,
            seen - announced,
            step_began - seen,
            step_ended - step_began,
            published - step_ended,
            noticed - published,
            pulled - noticed,
            pulled - began,
        )
        for values, part in zip(samples.values(), parts, strict=True):
            values.append(part)
    return {name: statistics.median(values) for name, values in samples.items()}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
