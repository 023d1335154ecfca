"""What the ranks of `hpcasync bench idle` do: workers compute long steps, servers have next to nothing to do.

mpirun -n SERVERS+WORKERS python -m hpcasync.bench.idle_ranks SERVERS NUM_STEPS STEP_SECONDS
"""

import json
import sys
import time

import torch
from mpi4py import MPI

from hpcasync.bench.computation import compute_for
from hpcasync.bench.jobs import RESULT
from hpcasync.comm.mpi import library_name
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.engine import Engine, EngineOptions
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.train.loop.optimizers import optimizer_factory

# Small: the arithmetic of the few updates is nothing beside the waiting.
_NUM_ELEMENTS = 10_000


def main(num_servers: int, num_steps: int, step_seconds: float) -> None:
    """Run, and print each server's part of a core, and each worker's in its waits for the servers."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    parameters = torch.zeros(_NUM_ELEMENTS)
    num_workers = comm.size - num_servers
    options = EngineOptions(num_servers=num_servers, pushes_per_update=num_workers)
    engine = Engine(comm, parameters, optimizer_factory(OptimizerConfig(name="adam")), options)
    comm.Barrier()
    started, cpu = time.perf_counter(), time.process_time()
    if engine.is_server:
        observer = MinimalObserver(1e-3)
        engine.serve(observer, observer)
    else:
        _work(engine, parameters, num_steps, step_seconds)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    everybody = comm.gather((engine.is_server, seconds, cpu_seconds), root=0)
    if everybody is not None:
        shares = [100 * used / wall for is_server, wall, used in everybody if is_server]
        wall = max(seconds for _, seconds, _ in everybody)
        about = {"hosts": len(set(engine.roles.hosts)), "mpi": library_name()}
        print(RESULT + json.dumps({"percent": shares, "seconds": wall, **about}), flush=True)
    engine.close()


def _work(engine: Engine, parameters: torch.Tensor, num_steps: int, step_seconds: float) -> None:
    client = engine.client
    gradient = torch.full_like(parameters, 1e-3)
    engine.start()
    for step in range(num_steps):
        version = client.pull(parameters)
        compute_for(step_seconds)
        if not (client.push(gradient, PushRecord(version, 1, 0.0, 0, 0.0, (step,)), is_checked=True) and client.wait()):
            break
    client.finish()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
