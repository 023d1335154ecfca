"""PyTorch DistributedDataParallel over gloo; the time of the same step without communication is taken off.

    mpirun -n 2 python benchmarks/peers/ddp_gloo.py NUM_ELEMENTS NUM_UPDATES

Ranks are started by mpirun as ours are; DDP itself does not use MPI.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from mpi4py import MPI

WARM_UP = 3


class Sum(torch.nn.Module):
    """The cheapest loss with a gradient for every parameter."""

    def __init__(self, num_elements: int) -> None:
        super().__init__()
        self.parts = torch.nn.ParameterList(part.clone() for part in torch.split(torch.zeros(num_elements), 1 << 20))

    def forward(self) -> torch.Tensor:
        """The sum of all parameters."""
        return torch.stack([part.sum() for part in self.parts]).sum()


def main(num_elements: int, num_updates: int) -> None:
    """Time updates and print the mean on rank 0."""
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    os.environ |= {"MASTER_ADDR": comm.bcast(MPI.Get_processor_name()), "MASTER_PORT": "29611"}
    dist.init_process_group("gloo", rank=comm.rank, world_size=comm.size)
    model = torch.nn.parallel.DistributedDataParallel(Sum(num_elements), gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def steps(number: int, context: Callable[[], AbstractContextManager[object]], *, is_whole: bool) -> float:
        started = time.perf_counter()
        for _ in range(number):
            optimizer.zero_grad(set_to_none=False)
            with context():
                model().backward()
            if is_whole:
                optimizer.step()
        return (time.perf_counter() - started) / number

    steps(WARM_UP, nullcontext, is_whole=True)
    whole = steps(num_updates, nullcontext, is_whole=True)
    local = steps(num_updates, model.no_sync, is_whole=False)
    if comm.rank == 0:
        result = {"seconds_per_update": whole - local, "version": f"torch {torch.__version__}"}
        print("hpcasync-bench-result " + json.dumps(result), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
