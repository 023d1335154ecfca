"""Sums of gradients in buckets, compared bit for bit with the sum over ranks in order of small whole numbers.

python check_bucket_sums.py horovod|torch none|bf16|fp16 […]; pairs in turn
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import torch
from mpi4py import MPI

from hpcasync.config.schema import Config
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.train.modes.bucket_sums import BucketSums
from hpcasync.train.modes.collectives import PendingSum, start_collectives

NUM_PARTS, ELEMENTS = 6, 1 << 9
# Backward completes the parts in the opposite order.
ORDER = [0, 5, 1, 4, 2, 3]


class Polling:
    """Waits as `RankWatch` does."""

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Return when `is_done`."""
        while not is_done():
            pass


class Parts(torch.nn.Module):
    """A loss whose gradient is known: small whole numbers, exact in every format."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ParameterList(torch.zeros(ELEMENTS) for _ in range(NUM_PARTS))

    def loss(self, gradient: torch.Tensor) -> torch.Tensor:
        """Linear in the parameters."""
        loss = torch.zeros(())
        for part in ORDER:
            loss = loss + (self.parts[part] * gradient[part * ELEMENTS : (part + 1) * ELEMENTS]).sum()
        return loss


def gradient_of(rank: int, round_number: int) -> torch.Tensor:
    return (torch.arange(NUM_PARTS * ELEMENTS, dtype=torch.float32) * (rank + 1) + round_number) % 5 - 2


def has_batch(rank: int, round_number: int) -> bool:
    """Rank 0 has none in the first round, from which no order can be learnt; rank 1 none in the last."""
    return (rank, round_number) not in ((0, 0), (1, 3))


def main(backend: str, compression: str) -> None:
    comm = MPI.COMM_WORLD
    sections = {"backend": backend, "compression": compression}
    config = Config.model_validate({"mode": "sync", "data": {"path": "x"}, "stop": {"updates": 1}, "sync": sections})
    collectives = start_collectives(config, comm, torch.device("cpu"))
    flat = FlatParameters(model := Parts())
    sums = BucketSums(
        collectives, flat, comm, Polling(), compression=config.sync.compression, scale=2.0, bucket_elements=ELEMENTS
    )
    started: list[str] = []
    start_sum = collectives.start_sum

    def note(vector: torch.Tensor, name: str) -> PendingSum:
        started.append(name)
        return start_sum(vector, name)

    collectives.start_sum = note  # type: ignore[method-assign]
    for round_number in range(4):
        if round_number == 2:  # the order is known: nothing but the sums is sent any more
            sums._comm = SimpleNamespace(rank=comm.rank, size=comm.size)  # type: ignore[assignment]
        flat.gradient.zero_()
        started.clear()
        if has_batch(comm.rank, round_number):
            sums.begin()
            torch.autograd.backward(model.loss(gradient_of(comm.rank, round_number)))
        num_early = len(started)
        totals = torch.full((3,), float(comm.rank), dtype=torch.float64)
        sums.sum(totals)
        expected = torch.zeros_like(flat.gradient)
        for rank in range(comm.size):
            expected += has_batch(rank, round_number) * gradient_of(rank, round_number)
        assert torch.equal(flat.gradient, expected), (round_number, flat.gradient, expected)
        assert totals.tolist() == [sum(range(comm.size))] * 3
        orders = comm.allgather(list(started))
        assert all(order == orders[0] for order in orders), orders
        # The order is learnt in the second round; from then on all buckets leave before backward has ended.
        is_known = round_number >= 2
        assert num_early == (NUM_PARTS if is_known and has_batch(comm.rank, round_number) else 0), round_number
        if is_known:
            assert started == [*(f"gradient.{part}" for part in reversed(ORDER)), "totals"], started
    print(f"{sums.description}: bucket sums are exact", flush=True)
    comm.Barrier()
    collectives.close()


if __name__ == "__main__":
    for pair in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        main(*pair)
