"""A parameter server over torch.distributed.rpc, built as PyTorch's tutorial on batch RPC processing does.

    mpirun -n 3 python benchmarks/peers/rpc_server.py NUM_ELEMENTS NUM_UPDATES SERVER_THREADS

Rank 0 is the server: it sums a gradient of every worker, makes Adam's step, and answers all with the new parameters.
"""

import json
import os
import sys
import threading
import time

import torch
from mpi4py import MPI
from torch.distributed import rpc
from torch.futures import Future

WARM_UP = 3


class Server:
    """Sums the gradients of all workers before a step."""

    def __init__(self, num_elements: int, num_workers: int) -> None:
        self._parameter = torch.nn.Parameter(torch.zeros(num_elements))
        self._optimizer = torch.optim.Adam([self._parameter], fused=True)
        self._num_workers = num_workers
        self._num_received = 0
        self._lock = threading.Lock()
        self._answer: Future[torch.Tensor] = Future()

    def add(self, gradient: torch.Tensor) -> "Future[torch.Tensor]":
        """Add a gradient; the future holds the parameters after the step that it is part of."""
        with self._lock:
            answer = self._answer
            if self._num_received == 0:
                self._parameter.grad = gradient
            else:
                assert self._parameter.grad is not None
                self._parameter.grad.add_(gradient)
            self._num_received += 1
            if self._num_received == self._num_workers:
                self._optimizer.step()
                self._num_received = 0
                self._answer = Future()
                answer.set_result(self._parameter.detach().clone())
        return answer


_server: Server | None = None


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def push_and_pull(gradient: torch.Tensor) -> "Future[torch.Tensor]":
    """Runs at the server."""
    assert _server is not None
    return _server.add(gradient)


def main(num_elements: int, num_updates: int, server_threads: int) -> None:
    """Time updates and print the mean on the first worker."""
    global _server
    comm = MPI.COMM_WORLD
    torch.set_num_threads(server_threads if comm.rank == 0 else 1)
    os.environ |= {"MASTER_ADDR": comm.bcast(MPI.Get_processor_name()), "MASTER_PORT": "29612"}
    if comm.rank == 0:
        _server = Server(num_elements, comm.size - 1)
    options = rpc.TensorPipeRpcBackendOptions(num_worker_threads=8, rpc_timeout=600)
    name, size = f"rank{comm.rank}", comm.size
    rpc.init_rpc(name, rank=comm.rank, world_size=size, rpc_backend_options=options)  # type: ignore[no-untyped-call]
    if comm.rank > 0:
        parameters, gradient = torch.zeros(num_elements), torch.full((num_elements,), 1e-3)
        started = 0.0
        for number in range(WARM_UP + num_updates):
            if number == WARM_UP:
                started = time.perf_counter()
            parameters.copy_(rpc.rpc_sync("rank0", push_and_pull, args=(gradient,)))
        seconds = (time.perf_counter() - started) / num_updates
        if comm.rank == 1:
            result = {"seconds_per_update": seconds, "version": f"torch {torch.__version__}"}
            print("hpcasync-bench-result " + json.dumps(result), flush=True)
    rpc.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
