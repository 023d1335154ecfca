"""What the ranks of `hpcasync bench compare` do for this project: updates without computation.

    mpirun -n 1+WORKERS python -m hpcasync.bench.updates_ranks NUM_ELEMENTS NUM_UPDATES PUSHES_PER_UPDATE PULL

Every worker pushes a gradient and pulls a version again and again; the coordinator sums and makes Adam's step.
"""

import json
import sys
import time
from typing import cast

import torch
from mpi4py import MPI

from hpcasync.bench.jobs import RESULT
from hpcasync.comm.mpi import library_name
from hpcasync.config import OptimizerConfig
from hpcasync.ps.client import PullPolicy
from hpcasync.ps.engine import Engine, EngineOptions
from hpcasync.ps.record import PushRecord
from hpcasync.ps.state import Update
from hpcasync.ps.unattended import Unattended
from hpcasync.train.optimizers import optimizer_factory

_WARM_UP = 3


class _Clock(Unattended):
    """Notes when each update was published."""

    def __init__(self, num_updates: int) -> None:
        super().__init__(1e-3, num_updates + _WARM_UP)
        self.times: list[float] = []

    def after_update(self, update: Update, learning_rate: float) -> None:
        self.times.append(time.perf_counter())
        super().after_update(update, learning_rate)

    def final_request(self) -> None:
        return None


def main(num_elements: int, num_updates: int, pushes_per_update: int, pull: PullPolicy) -> None:
    """Run, and print seconds per update and where a worker's time went."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    parameters, gradient = torch.zeros(num_elements), torch.full((num_elements,), 1e-3)
    options = EngineOptions(pushes_per_update=pushes_per_update, pull=pull)
    engine = Engine(comm, parameters, optimizer_factory(OptimizerConfig()), options)
    clock = _Clock(num_updates)
    spent = None
    if engine.is_server:
        engine.serve(clock, clock)
    else:
        engine.start()
        spent = _push_and_pull(engine, parameters, gradient)
    everybody = comm.gather(spent, root=0)
    if everybody is not None:
        times = clock.times[_WARM_UP - 1 :]
        per_push = [worker for worker in everybody if worker is not None]
        mean = {key: sum(worker[key] for worker in per_push) / len(per_push) for key in per_push[0]}
        seconds = (times[-1] - times[0]) / (len(times) - 1)
        print(RESULT + json.dumps({"seconds_per_update": seconds, "mpi": library_name(), **mean}), flush=True)
    engine.close()


def _push_and_pull(engine: Engine, parameters: torch.Tensor, gradient: torch.Tensor) -> dict[str, float]:
    """A worker's loop; returns mean seconds of push, wait and pull."""
    client = engine.client
    spent, number = [0.0, 0.0, 0.0], 0
    while not client.should_stop():
        started = time.perf_counter()
        version = client.pull(parameters)
        pulled = time.perf_counter()
        if not client.push(gradient, PushRecord(version, 1, 0.0, 0, 0.0, (number,))):
            break
        pushed = time.perf_counter()
        going_on = client.wait()
        waited = time.perf_counter()
        number += 1
        if number > _WARM_UP:
            spent = [a + b for a, b in zip(spent, (pushed - pulled, waited - pushed, pulled - started), strict=True)]
        if not going_on:
            break
    client.finish()
    return dict(zip(("push", "wait", "pull"), (value / max(1, number - _WARM_UP) for value in spent), strict=True))


if __name__ == "__main__":
    elements, updates, group = map(int, sys.argv[1:4])
    main(elements, updates, group, cast(PullPolicy, sys.argv[4]))
