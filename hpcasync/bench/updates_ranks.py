"""What the ranks of `hpcasync bench compare` do for this project: updates without computation.

    mpirun -n 1+WORKERS python -m hpcasync.bench.updates_ranks NUM_ELEMENTS NUM_UPDATES PUSHES PULL SERVER_THREADS

Every worker pushes a gradient and pulls a version again and again; the coordinator sums and makes Adam's step.
"""

import json
import sys
import time
from typing import cast

import torch
from mpi4py import MPI

from hpcasync.bench.jobs import RESULT
from hpcasync.choices import PullPolicy
from hpcasync.comm.mpi import library_name
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.engine import Engine, EngineOptions
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Update
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.train.loop.optimizers import optimizer_factory

_WARM_UP = 3


class _Clock(MinimalObserver):
    """Notes when each update was published."""

    def __init__(self, num_updates: int) -> None:
        super().__init__(1e-3, num_updates + _WARM_UP)
        self.times: list[float] = []

    def after_update(self, update: Update, learning_rate: float) -> None:
        self.times.append(time.perf_counter())
        super().after_update(update, learning_rate)

    def final_request(self) -> None:
        return None


def main(num_elements: int, num_updates: int, pushes_per_update: int, pull: PullPolicy, server_threads: int) -> None:
    """Run, and print seconds per update."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    flat = FlatParameters(torch.nn.ParameterList([torch.zeros(num_elements)]))
    options = EngineOptions(server_threads=server_threads, pushes_per_update=pushes_per_update, pull=pull)
    engine = Engine(comm, flat.parameters, optimizer_factory(OptimizerConfig(name="adam")), options)
    clock = _Clock(num_updates)
    if engine.is_server:
        engine.serve(clock, clock)
        times = clock.times[_WARM_UP - 1 :]
        seconds = (times[-1] - times[0]) / (len(times) - 1)
        print(RESULT + json.dumps({"seconds_per_update": seconds, "mpi": library_name()}), flush=True)
    else:
        engine.start()
        _push_and_pull(engine, flat)
    engine.close()


def _push_and_pull(engine: Engine, flat: FlatParameters) -> None:
    client, number = engine.client, 0
    client.place_gradients(flat)
    while not client.should_stop():
        version = client.pull(flat.parameters)
        if number < _WARM_UP:
            flat.gradient.fill_(1e-3)  # each of the vectors that take turns
        if not (
            client.push(flat.gradient, PushRecord(version, 1, 0.0, 0, 0.0, (number,)), is_checked=True)
            and client.wait()
        ):
            break
        number += 1
    client.finish()


if __name__ == "__main__":
    elements, updates, group = map(int, sys.argv[1:4])
    main(elements, updates, group, cast(PullPolicy, sys.argv[4]), int(sys.argv[5]))
