"""Whether windows and copies beside them fit hosts and GPUs: said before there are any, not by a bus error after."""

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
from hpcasync.ps.transport.window_layout import Layout


@dataclass(frozen=True)
class RankMemory:
    """Bytes that a rank is about to allocate.

    Attributes:
        windows: in host memory.
        beside: of host memory, beside them.
        on_gpu: on its GPU.
    """

    windows: int
    beside: int
    on_gpu: int = 0


@dataclass(frozen=True)
class Copies:
    """What ranks keep beside their windows.

    Attributes:
        private_copies: float32 copies of its shard at a server. (Counted too: a copy for each worker on another host,
            needed if all of them pull different versions.)
        mirrored_vectors: copies in host memory of a worker's vectors on a GPU.
        sum_bytes: size of an element of the sums that hosts exchange.
        are_on_gpu: MPI takes GPU memory: what a server sends of it to other hosts, and receives, is copied there.
    """

    private_copies: int
    mirrored_vectors: int
    sum_bytes: int
    are_on_gpu: bool = False


def memory_of(layout: Layout, rank: int, device_type: str, copies: Copies) -> RankMemory:
    """What a rank needs that computes, or holds its shard, on such a device."""
    windows = layout.window_bytes(rank) + layout.beside_bytes(rank)
    # Torch makes page-locked memory in powers of two.
    copied, computed, sent = copies.mirrored_vectors * 2 ** (4 * layout.shards[-1].stop - 1).bit_length(), 0, 0
    if layout.roles.is_server(rank):
        server = layout.roles.server_ranks.index(rank)
        size = layout.shards[server].size
        summed = sum(layout.shards[other].size for other in layout.summed_by(server))
        computed = 4 * (size * copies.private_copies + summed)
        sums = (size * len(layout.sources(server)) + summed) * copies.sum_bytes
        pulls = size * layout.parameter_bytes * layout.num_far_workers(server)
        copied, sent = sums + pulls, sums + (pulls if layout.is_mapped else 0)
    if device_type == "cpu":
        return RankMemory(windows, copied + computed)
    mapped = layout.window_bytes(rank) if layout.is_mapped else 0
    direct = sent if copies.are_on_gpu else 0
    return RankMemory(windows - mapped, copied - direct, mapped + computed + direct)


def require_memory(comm: MPI.Intracomm, roles: Roles, own: RankMemory, device: torch.device) -> None:
    """Check that what all ranks need fits their hosts and GPUs (collective).

    Raises:
        UserError: on every rank, naming the host or GPU, what is needed and what is there.
    """
    host, needs = roles.hosts[comm.rank], comm.allgather(own)
    here = [needs[rank] for rank in roles.ranks_on_host(host)]
    shared, private = sum(need.windows for need in here), sum(need.beside for need in here)
    collectively(comm, lambda: _require(host, shared, private))
    _require_gpu_memory(comm, host, device, own.on_gpu)


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


def _require_gpu_memory(comm: MPI.Intracomm, host: str, device: torch.device, needed: int) -> None:
    share = None
    if device.type == "cuda":
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        share = GpuShare(host, uuid, needed, torch.cuda.mem_get_info(device)[0])
    shortage = describe_gpu_shortage([share for share in comm.allgather(share) if share is not None])
    if shortage is not None:
        raise UserError(shortage, everywhere=True)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
