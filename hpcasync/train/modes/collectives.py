"""Who sums vectors over all workers of the synchronous baseline: Horovod, or torch.distributed."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed
from mpi4py import MPI
from torch._C._distributed_c10d import TCPStore

from hpcasync.comm.mpi import collectively, gather_hosts, require_same, require_threads
from hpcasync.config.schema import RunConfig
from hpcasync.errors import UserError

# Deaths and silences are noticed elsewhere (`deaths.policy`, `supervise.rank_watch`), and a stopped rank may go on.
_FOREVER = timedelta(days=365)


@dataclass(frozen=True)
class PendingSum:
    """A sum in place that is under way; `wait` makes the result visible to what this thread computes next."""

    is_done: Callable[[], bool]
    wait: Callable[[], object]


class Collectives(Protocol):
    """Sums over all ranks, which start the same sums in the same order."""

    @property
    def description(self) -> str:
        """For people."""

    def start_sum(self, vector: torch.Tensor, name: str) -> PendingSum:
        """Begin to sum a contiguous vector in place; it must stay untouched until the sum is done."""

    def close(self) -> None:
        """End (collective)."""


class OwnSums:
    """Sums over a single rank."""

    description = "nobody else"

    def start_sum(self, vector: torch.Tensor, name: str) -> PendingSum:
        return PendingSum(lambda: True, lambda: None)

    def close(self) -> None:
        """See Collectives."""


def start_collectives(config: RunConfig, comm: MPI.Intracomm, device: torch.device) -> Collectives:
    """Start what sums gradients on `device` (collective).

    Raises:
        UserError: on every rank, if it is not there or cannot sum them.
    """
    if comm.size == 1:
        return OwnSums()
    backend = config.sync.backend
    if backend == "auto":
        backend = "torch" if importlib.util.find_spec("horovod") is None else "horovod"
    require_same(comm, backend, "what sums gradients in mode sync (sync.backend=auto takes Horovod where it is found)")
    if backend == "torch":
        return collectively(comm, lambda: TorchCollectives(comm, device))
    # Horovod's thread sums while this one looks for ranks that do not come.
    require_threads("mode=sync with Horovod", "set sync.backend=torch")
    hvd = collectively(comm, lambda: _import_horovod(config, device))
    return HorovodCollectives(hvd, comm)


class HorovodCollectives:
    """Horovod's asynchronous operations.

    Its own fusion is off: vectors come in buckets that are contiguous already, and what it fuses depends on the moment,
    and with that, for more than two ranks, the last bit of a sum.
    """

    def __init__(self, hvd: Any, comm: MPI.Intracomm) -> None:
        os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
        # It says nothing of a rank whose whole process is stopped; `RankWatch` does.
        os.environ.setdefault("HOROVOD_STALL_CHECK_DISABLE", "1")
        if MPI.Comm.Compare(comm, MPI.COMM_WORLD) == MPI.IDENT:
            hvd.init()
        else:
            hvd.init(comm=comm)
        if hvd.size() != comm.size:
            raise UserError(
                f"Horovod sees {hvd.size()} ranks and MPI {comm.size}: see `hpcasync doctor`", everywhere=True
            )
        self._hvd = hvd

    @property
    def description(self) -> str:
        return f"Horovod ({'NCCL' if self._hvd.nccl_built() else 'MPI'})"

    def start_sum(self, vector: torch.Tensor, name: str) -> PendingSum:
        handle = self._hvd.allreduce_async_(vector, op=self._hvd.Sum, name=name)
        return PendingSum(lambda: bool(self._hvd.poll(handle)), lambda: self._hvd.synchronize(handle))

    def close(self) -> None:
        self._hvd.shutdown()


class TorchCollectives:
    """torch.distributed: NCCL for vectors on a GPU, gloo for those on the CPU. Ranks are MPI's."""

    def __init__(self, comm: MPI.Intracomm, device: torch.device) -> None:
        hosts = gather_hosts(comm)
        if len(set(hosts)) == 1:
            # A host's own name need not lead to an address that it can be reached at.
            hosts[0] = "127.0.0.1"
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        self._backends = {"cpu": "gloo"} if device.type == "cpu" else {"cpu": "gloo", device.type: "nccl"}
        store = self._meet(comm, hosts[0])
        names = ",".join(f"{kind}:{backend}" for kind, backend in self._backends.items())
        torch.distributed.init_process_group(names, store=store, rank=comm.rank, world_size=comm.size, timeout=_FOREVER)

    @property
    def description(self) -> str:
        return f"torch.distributed ({list(self._backends.values())[-1]})"

    def start_sum(self, vector: torch.Tensor, name: str) -> PendingSum:
        work = torch.distributed.all_reduce(vector, async_op=True)
        assert work is not None
        return PendingSum(work.is_completed, work.wait)

    def close(self) -> None:
        torch.distributed.destroy_process_group()

    @staticmethod
    def _meet(comm: MPI.Intracomm, host: str) -> TCPStore:
        first = None
        if comm.rank == 0:
            first = TCPStore(host, 0, comm.size, is_master=True, wait_for_workers=False, timeout=_FOREVER)
        port = comm.bcast(None if first is None else first.port)
        return first or TCPStore(host, port, comm.size, is_master=False, timeout=_FOREVER)


def _import_horovod(config: RunConfig, device: torch.device) -> Any:
    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise UserError(
            f"mode=sync needs Horovod, which cannot be imported ({error}); `make setup` builds it, docs/install.md "
            "says how for a cluster; sync.backend=torch and every asynchronous mode work without it"
        ) from error
    if not hvd.mpi_built():
        raise UserError("this Horovod was built without MPI: rebuild it with HOROVOD_WITH_MPI=1")
    check_horovod_sums(config, device, has_nccl=bool(hvd.nccl_built()))
    return hvd


def check_horovod_sums(config: RunConfig, device: torch.device, *, has_nccl: bool) -> None:
    """Refuse gradients that Horovod would abort on in a thread of its own, or take through host memory unasked."""
    if device.type == "cuda" and not has_nccl:
        raise UserError(
            "mode=sync on GPUs, but this Horovod was built without NCCL: set sync.backend=torch, or build it again "
            "with HOROVOD_GPU_OPERATIONS=NCCL (docs/install.md), or use device=cpu"
        )
    if config.sync.compression == "bf16":
        raise UserError("sync.compression=bf16, which Horovod does not sum: use fp16, or sync.backend=torch")
