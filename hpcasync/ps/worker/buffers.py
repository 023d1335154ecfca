"""A module's buffers, such as a BatchNorm's running statistics: every worker makes its own, no server sees them."""

import hashlib
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:  # a module can be flattened where MPI has not been started
    from mpi4py import MPI

Arrays = dict[str, np.ndarray]


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

    def arrays(self, names: Iterable[str]) -> Arrays:
        """Copies of buffers by name."""
        current = dict(self._module.named_buffers())
        return {name: array_of(current[name]).copy() for name in names}

    def average(self, comm: "MPI.Intracomm", weight: int) -> None:
        """Give every rank the means (`mean_of`) of the buffers that have changed (collective).

        Args:
            comm: all ranks, with the same buffers.
            weight: of this rank's: gradients that it pushed.
        """
        names = sorted(set().union(*comm.allgather(self.changed() if weight else [])))
        if not names:
            return
        held = [(other, arrays) for other, arrays in comm.allgather((weight, self.arrays(names))) if other]
        current = dict(self._module.named_buffers())
        for name in names:
            mean = mean_of([(other, arrays[name]) for other, arrays in held])
            current[name].copy_(torch.from_numpy(mean))


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """What a tensor holds; it may lie in its memory."""
    values = tensor.detach().cpu()
    # numpy has no bfloat16; float32 holds the same numbers.
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def mean_of(held: Collection[tuple[int, np.ndarray]]) -> np.ndarray:
    """Of what workers hold of a buffer, each with its weight: the mean, of whole numbers that with the largest sum."""
    first = next(iter(held))[1]
    if not np.issubdtype(first.dtype, np.inexact):
        return max((array for _, array in held), key=lambda array: float(array.sum()))
    total = sum(weight for weight, _ in held)
    wide = np.result_type(first.dtype, np.float64)
    return np.asarray(sum(array.astype(wide) * (weight / total) for weight, array in held), dtype=first.dtype)


def _digest(buffer: torch.Tensor) -> bytes:
    values = buffer.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(values.numpy().data, digest_size=16).digest()
