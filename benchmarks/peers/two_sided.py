"""A parameter server with ordinary messages: mpi4py's Send and Recv.

    mpirun -n 3 python benchmarks/peers/two_sided.py NUM_ELEMENTS NUM_UPDATES SERVER_THREADS

Rank 0 receives a gradient of every worker, makes Adam's step on the sum, and sends all of them the new parameters.
"""

import json
import sys
import time

import mpi4py
import torch
from mpi4py import MPI

WARM_UP = 3


def serve(comm: MPI.Intracomm, num_elements: int, num_updates: int) -> None:
    """The server's loop."""
    parameter = torch.nn.Parameter(torch.zeros(num_elements))
    optimizer = torch.optim.Adam([parameter], fused=True)
    received = [torch.empty(num_elements) for _ in range(1, comm.size)]
    for _ in range(num_updates):
        MPI.Request.Waitall([comm.Irecv(buffer.numpy(), source) for source, buffer in enumerate(received, start=1)])
        total = received[0]
        for other in received[1:]:
            total.add_(other)
        parameter.grad = total
        optimizer.step()
        values = parameter.detach().numpy()
        MPI.Request.Waitall([comm.Isend(values, dest) for dest in range(1, comm.size)])


def work(comm: MPI.Intracomm, num_elements: int, num_updates: int) -> float:
    """A worker's loop; returns seconds per update."""
    parameters, gradient = torch.zeros(num_elements), torch.full((num_elements,), 1e-3)
    started = 0.0
    for number in range(WARM_UP + num_updates):
        if number == WARM_UP:
            started = time.perf_counter()
        comm.Send(gradient.numpy(), 0)
        comm.Recv(parameters.numpy(), 0)
    return (time.perf_counter() - started) / num_updates


def main(num_elements: int, num_updates: int, server_threads: int) -> None:
    """Time updates and print the mean on the first worker."""
    comm = MPI.COMM_WORLD
    torch.set_num_threads(server_threads if comm.rank == 0 else 1)
    if comm.rank == 0:
        serve(comm, num_elements, WARM_UP + num_updates)
        return
    seconds = work(comm, num_elements, num_updates)
    if comm.rank == 1:
        result = {"seconds_per_update": seconds, "version": f"mpi4py {mpi4py.__version__}"}
        print("hpcasync-bench-result " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
