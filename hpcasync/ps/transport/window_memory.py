"""Whether the windows fit a host's memory: said before they are allocated, not by a bus error after."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mpi4py import MPI

from hpcasync.comm.free_memory import free_memory
from hpcasync.comm.mpi import collectively
from hpcasync.comm.roles import Roles
from hpcasync.comm.shared_file import SHARED_MEMORY
from hpcasync.errors import UserError


def require_window_memory(comm: MPI.Intracomm, roles: Roles, window_bytes: list[int], private_bytes: list[int]) -> None:
    """Check on every host that the windows of its ranks fit (collective).

    Args:
        private_bytes: what each rank needs beside it.

    Raises:
        UserError: on every rank, naming the host, what is needed and what is there.
    """
    host = roles.hosts[comm.rank]
    here = roles.ranks_on_host(host)
    shared = sum(window_bytes[rank] for rank in here)
    private = sum(private_bytes[rank] for rank in here)
    collectively(comm, lambda: _require(host, shared, private))


@dataclass(frozen=True)
class GpuShare:
    """What a rank is about to allocate on a GPU.

    Attributes:
        host, uuid: of the GPU.
        needed: bytes.
        free: bytes, before any rank has allocated anything of it.
    """

    host: str
    uuid: str
    needed: int
    free: int


def require_gpu_memory(comm: MPI.Intracomm, host: str, device: torch.device, needed: int) -> None:
    """Check that what ranks need on their GPUs fits there (collective); a rank on the CPU needs nothing.

    Raises:
        UserError: on every rank, naming the GPU, what is needed and what is there.
    """
    share = None
    if device.type == "cuda":
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        share = GpuShare(host, uuid, needed, torch.cuda.mem_get_info(device)[0])
    shortage = describe_gpu_shortage([share for share in comm.allgather(share) if share is not None])
    if shortage is not None:
        raise UserError(shortage, everywhere=True)


def describe_gpu_shortage(shares: Sequence[GpuShare]) -> str | None:
    """What is wrong with placing all of this on GPUs that ranks may share, or None."""
    for gpu in dict.fromkeys((share.host, share.uuid) for share in shares):
        here = [share for share in shares if (share.host, share.uuid) == gpu]
        needed, free = sum(share.needed for share in here), min(share.free for share in here)
        if needed > free:
            return (
                f"{gpu[0]}: windows and shards of {_gib(needed)} do not fit {_gib(free)} free on GPU {gpu[1][:12]}: "
                "use servers on more GPUs (roles.servers), fewer slots (exchange.slots), a smaller model, or "
                "roles.server_device=cpu"
            )
    return None


def describe_shortage(
    host: str, needed: int, free_memory: int, free_shared: int | None, private: int = 0
) -> str | None:
    """What is wrong with placing `needed` bytes of windows and `private` bytes beside them on a host, or None."""
    remedy = "use more servers on more hosts (roles.servers), fewer slots (exchange.slots) or a smaller model"
    if needed + private > free_memory:
        what = f"windows of {_gib(needed)}" + (f" and {_gib(private)} of copies beside them" if private else "")
        return f"{host}: {what} do not fit {_gib(free_memory)} of free memory: {remedy}"
    if free_shared is not None and needed > free_shared:
        return (
            f"{host}: windows of {_gib(needed)} do not fit {_gib(free_shared)} free in {SHARED_MEMORY}: enlarge it "
            f"(`mount -o remount,size=… {SHARED_MEMORY}`), remove what dead jobs left there, or {remedy}"
        )
    return None


def _require(host: str, needed: int, private: int) -> None:
    free_shared = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None
    shortage = describe_shortage(host, needed, free_memory(), free_shared, private)
    if shortage is not None:
        raise UserError(shortage)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
