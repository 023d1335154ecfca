"""What the ranks of `hpcasync bench abort` do: asynchronous updates, until one rank throws.

    mpirun -n SERVERS+WORKERS python -m hpcasync.bench.abort_ranks SERVERS FAILING_RANK

The failing rank prints the time, by the clock that all processes of a host share, and throws. A server does so in its
optimizer's step, a worker in its computation; the others compute, or wait for what never comes.
"""

import json
import sys
import time
from typing import Any, NoReturn

import torch
from mpi4py import MPI

from hpcasync.bench.computation import compute_for
from hpcasync.bench.jobs import RESULT
from hpcasync.comm.mpi import library_name
from hpcasync.launch.failure import abort_on_thread_errors, end_process
from hpcasync.ps.engine import Engine, EngineOptions
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord

# Small: a shard is one block.
_NUM_ELEMENTS = 10_000
_STEP_SECONDS = 0.02
# Steps of a worker, or updates of a server, that go well.
_NUM_BEFORE = 10


def main(num_servers: int, failing_rank: int) -> None:
    """Run until the end of the job."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    is_failing = comm.rank == failing_rank
    parameters = torch.zeros(_NUM_ELEMENTS)
    options = EngineOptions(num_servers=num_servers, pushes_per_update=comm.size - num_servers)
    engine = Engine(comm, parameters, _FailingSGD if is_failing else _sgd, options)
    if engine.is_server:
        observer = MinimalObserver(1e-3)
        engine.serve(observer, observer)
    else:
        engine.start()
        _work(engine, parameters, is_failing=is_failing)
    engine.close()


def _work(engine: Engine, parameters: torch.Tensor, *, is_failing: bool) -> None:
    client, gradient, number = engine.client, torch.full_like(parameters, 1e-3), 0
    while not client.should_stop():
        version = client.pull(parameters)
        compute_for(_STEP_SECONDS)
        if is_failing and number == _NUM_BEFORE:
            _fail()
        if not (
            client.push(gradient, PushRecord(version, 1, 0.0, 0, 0.0, (number,)), is_checked=True) and client.wait()
        ):
            break
        number += 1
    client.finish()


def _sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


class _FailingSGD(torch.optim.SGD):
    """Throws instead of a step."""

    _num_steps = 0

    def step(self, closure: Any = None) -> Any:
        if self._num_steps == _NUM_BEFORE:
            _fail()
        self._num_steps += 1
        return super().step(closure)


def _fail() -> NoReturn:
    print(RESULT + json.dumps({"raised": time.monotonic(), "mpi": library_name()}), flush=True)
    raise ZeroDivisionError("as `hpcasync bench abort` asks")


if __name__ == "__main__":
    abort_on_thread_errors()
    try:
        main(*map(int, sys.argv[1:3]))
    except BaseException as error:
        end_process(error)  # as `hpcasync` itself does
