"""A module's buffers, such as a BatchNorm's running statistics: every worker makes its own, no server sees them."""

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # a module can be flattened where MPI has not been started
    from mpi4py import MPI


class Buffers:
    """Brings what the workers' buffers have become to all ranks, once training has ended."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._digests = {name: _digest(buffer) for name, buffer in module.named_buffers()}

    @property
    def statistics(self) -> list[str]:
        """Names of layers that gather statistics of what they are trained on."""
        layers = self._module.named_modules()
        return [name for name, layer in layers if getattr(layer, "running_mean", None) is not None]

    @property
    def layout(self) -> list[str]:
        """Name, shape and type of each."""
        return [f"{name}:{tuple(buffer.shape)}:{buffer.dtype}" for name, buffer in self._module.named_buffers()]

    def changed(self) -> list[str]:
        """Names of those that are not what they were at first."""
        current = dict(self._module.named_buffers())
        return [name for name, digest in self._digests.items() if name in current and _digest(current[name]) != digest]

    def average(self, comm: "MPI.Intracomm", weight: int) -> None:
        """Give every rank the mean of the buffers that have changed; of whole numbers, the largest (collective).

        Args:
            comm: all ranks, with the same buffers.
            weight: of this rank's: gradients that it pushed.
        """
        total = comm.allreduce(weight)
        names = sorted(set().union(*comm.allgather(self.changed() if weight else [])))
        current = dict(self._module.named_buffers())
        for name in names:
            buffer = current[name]
            if buffer.is_floating_point() or buffer.is_complex():
                wide = torch.complex128 if buffer.is_complex() else torch.float64
                own = buffer.to("cpu", wide) * (weight / total) if weight else torch.zeros(buffer.shape, dtype=wide)
                mean = torch.empty_like(own)
                comm.Allreduce(own.numpy(), mean.numpy())
                buffer.copy_(mean)
            else:
                buffer.copy_(max(comm.allgather(buffer.cpu()), key=lambda values: int(values.sum())))


def _digest(buffer: torch.Tensor) -> bytes:
    values = buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(values.numpy().data, digest_size=16).digest()
