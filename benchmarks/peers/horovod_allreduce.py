"""Horovod: every rank sums gradients by allreduce and makes the whole optimizer step itself.

mpirun -n 2 python benchmarks/peers/horovod_allreduce.py NUM_ELEMENTS NUM_UPDATES
"""

import json
import sys
import time

import horovod
import horovod.torch as hvd
import torch

WARM_UP = 3


def main(num_elements: int, num_updates: int) -> None:
    """Time updates and print the mean on rank 0."""
    torch.set_num_threads(1)
    hvd.init()
    parameter = torch.nn.Parameter(torch.zeros(num_elements))
    gradient = torch.full((num_elements,), 1e-3)
    optimizer = torch.optim.Adam([parameter], fused=True)
    started = 0.0
    for number in range(WARM_UP + num_updates):
        if number == WARM_UP:
            started = time.perf_counter()
        gradient.fill_(1e-3)
        hvd.allreduce_(gradient, op=hvd.Sum, name="gradient")
        parameter.grad = gradient
        optimizer.step()
    seconds = (time.perf_counter() - started) / num_updates
    if hvd.rank() == 0:
        result = {"seconds_per_update": seconds, "version": f"Horovod {horovod.__version__}"}
        print("hpcasync-bench-result " + json.dumps(result), flush=True)
    hvd.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
