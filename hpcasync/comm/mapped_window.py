"""A data window of memory that its owner exports and the others of its host map: of a GPU, or of the host.

On a GPU this is CUDA's IPC by torch's own sharing of storage, on a CPU a file of shared memory: all else is the same.
What is computed or copied on a GPU is done when its stream says so. So nothing is told to others, by a control word,
before this side's streams have been waited for: `flush` and `read` wait for copies, `sync` for what this thread has
computed.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

from hpcasync.comm.copy_stream import CopyStream
from hpcasync.comm.mpi import collectively, ranks_of_node
from hpcasync.comm.shared_file import make_shared_file
from hpcasync.errors import UserError

_CURE = "use exchange.window=mpi"


class MappedWindow:
    """Bytes on every rank, as `comm.windows.DataWindow` has them within a host, in memory of the rank's device.

    Args:
        comm: all ranks of the job (collective).
        node_comm: the ranks of `comm` that share this host.
        num_bytes: exposed by this rank; may be 0.
        device: of this rank; all ranks' are of one type.
        fence: orders this rank's loads and stores of the host's memory.

    Raises:
        UserError: on every rank, if memory cannot be had or shared.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        node_comm: MPI.Intracomm,
        num_bytes: int,
        device: torch.device,
        fence: Callable[[], None],
    ) -> None:
        device = self.device = torch.empty(0, device=device).device  # with its number, which pools of memory need
        self._comm = comm
        self._fence = fence
        self._copies = CopyStream(device)
        own = collectively(comm, lambda: (_DeviceMemory if device.type == "cuda" else _HostMemory)(num_bytes, device))
        readers = [bool(num_bytes) and rank != node_comm.rank for rank in range(node_comm.size)]
        handles = node_comm.alltoall(collectively(comm, lambda: [own.handle() if reads else None for reads in readers]))
        self._own = own
        mapped = collectively(comm, lambda: [own.map(handle) for handle in handles])
        self._memory = {rank: mapped[node] for rank, node in ranks_of_node(comm, node_comm).items()}
        self._memory[comm.rank] = own.memory
        own.is_mapped_by_all()

    def is_local(self, rank: int) -> bool:
        """Whether `rank`'s bytes can be reached: it is on this host."""
        return rank in self._memory

    def reaches(self, device: torch.device) -> bool:
        """Whether a device's vectors can be written and read as they are."""
        return device.type == self.device.type

    def memory(self, rank: int) -> torch.Tensor:
        """The bytes of a rank on this host, uint8."""
        return self._memory[rank]

    def write(self, rank: int, offset: int, values: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Copy a contiguous tensor, which no stream is computing any more, into `rank`'s memory; see `DataWindow`."""
        self._copies.copy(self._part(rank, offset, values, dtype), values)

    def read(self, rank: int, offset: int, out: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Copy from `rank`'s memory to a contiguous tensor that no stream is using; complete on return."""
        self._fence()
        self._copies.copy(out, self._part(rank, offset, out, dtype))
        self.flush(rank)

    def flush(self, rank: int) -> None:
        """Complete all copies, so that an atomic write made after this is seen after the data."""
        self._copies.wait()
        self._fence()

    def sync(self) -> None:
        """Complete what this thread has had computed, and make others' completed writes visible to what comes next."""
        self._copies.wait_for_computation()
        self._fence()

    def free(self) -> None:
        """Free the memory (collective). Tensors got from `memory` must not be used after it."""
        self._memory.clear()
        self._comm.Barrier()  # nobody maps what is freed
        self._own.free()

    def _part(self, rank: int, offset: int, values: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        dtype = values.dtype if dtype is None else dtype
        return self._memory[rank][offset : offset + values.numel() * dtype.itemsize].view(dtype)


class _HostMemory:
    """A file of shared memory, without a name as soon as all have mapped it."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._path = ""
        self.memory = torch.empty(0, dtype=torch.uint8)
        if not num_bytes:
            return
        descriptor, self._path = make_shared_file(f"hpcasync-window-{os.getpid()}-")
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            self.is_mapped_by_all()
            raise UserError(
                f"{num_bytes:,} bytes cannot be had in {Path(self._path).parent}: {error.strerror}"
            ) from error
        finally:
            os.close(descriptor)
        self.memory = self._of_file(self._path, num_bytes)

    def handle(self) -> tuple[str, int]:
        """By which another rank maps it."""
        return self._path, self.memory.numel()

    def map(self, handle: tuple[str, int] | None) -> torch.Tensor:
        """Another rank's memory; None: it has none."""
        if handle is None:
            return torch.empty(0, dtype=torch.uint8)
        path, num_bytes = handle
        # torch would make a file where there is none: ranks may have directories of their own for shared memory.
        if not Path(path).is_file():
            raise UserError(f"{path} of another rank cannot be mapped: it is not there; {_CURE}")
        return self._of_file(path, num_bytes)

    def is_mapped_by_all(self) -> None:
        """Nothing is left behind, however this ends."""
        if self._path:
            Path(self._path).unlink()

    def free(self) -> None:
        """Unmapped with the last tensor."""
        del self.memory

    @staticmethod
    def _of_file(path: str, num_bytes: int) -> torch.Tensor:
        return torch.from_file(path, shared=True, size=num_bytes, dtype=torch.uint8)


class _DeviceMemory:
    """An allocation on a GPU that holds nothing else: CUDA exports whole allocations."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._device = device
        try:
            self._pool = torch.cuda.MemPool()  # of its own: nothing else lies in a segment of it
            with torch.cuda.use_mem_pool(self._pool, device):
                self.memory = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        except RuntimeError as error:
            raise UserError(f"{num_bytes:,} bytes cannot be had on {device}: {_first_line(error)}") from error
        self._storage: Any = self.memory.untyped_storage()

    def handle(self) -> tuple[Any, ...]:
        """For one rank; torch counts those who map it."""
        try:
            handle: tuple[Any, ...] = self._storage._share_cuda_()
        except RuntimeError as error:
            raise UserError(
                f"CUDA cannot share memory between processes here: {_first_line(error)}; {_CURE}"
            ) from error
        return handle

    def map(self, handle: tuple[Any, ...] | None) -> torch.Tensor:
        """Another rank's memory, also of a GPU that this process does not see, as if it were this device's own."""
        empty = torch.empty(0, dtype=torch.uint8, device=self._device)
        if handle is None:
            return empty
        # Nothing has been written yet that an event would have to be waited for; and unlike the memory, an event of a
        # GPU that this process does not see may not be openable.
        _, *shared, _ = handle
        try:
            storage = torch.UntypedStorage._new_shared_cuda(self._device.index, *shared, False)
        except RuntimeError as error:
            raise UserError(
                f"CUDA cannot map another rank's memory: {_first_line(error)} (different containers, or GPUs that "
                f"cannot reach each other); {_CURE}"
            ) from error
        return empty.set_(storage)

    def is_mapped_by_all(self) -> None:
        """Nothing to do: the memory has no name."""

    def free(self) -> None:
        """Give the memory back."""
        del self.memory, self._storage, self._pool


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
