"""Run on two ranks by `hpcasync doctor`: one Horovod allreduce, checked. Rank 0 prints one line of JSON."""

import json

import horovod.torch as hvd
import torch


def main() -> None:
    """Sum a vector over two ranks."""
    hvd.init()
    assert hvd.size() == 2, f"2 ranks were started and Horovod sees {hvd.size()}: it was built against another MPI"
    values = torch.arange(1000, dtype=torch.float32) * (hvd.rank() + 1)
    hvd.allreduce_(values, op=hvd.Sum)
    assert torch.equal(values, torch.arange(1000, dtype=torch.float32) * 3), "allreduce gave a wrong sum"
    if hvd.rank() == 0:
        facts = {
            "mpi_built": bool(hvd.mpi_built()),
            "mpi_threads_supported": bool(hvd.mpi_threads_supported()),
            "nccl_built": bool(hvd.nccl_built()),
            "gloo_built": bool(hvd.gloo_built()),
            "cuda_built": bool(hvd.cuda_built()),
        }
        print(json.dumps(facts), flush=True)
    hvd.shutdown()


if __name__ == "__main__":
    main()
