"""A module's buffers over all workers: what checkpoints and snapshots hold of BatchNorm's running statistics."""

from typing import Any

import numpy as np
import torch

from hpcasync.errors import UserError
from hpcasync.ps.worker.buffers import Arrays, array_of, mean_of


class BufferMeans:
    """The newest buffers that each worker has told of, and their mean by the gradients that each has pushed."""

    def __init__(self) -> None:
        self._newest: dict[int, tuple[int, Arrays]] = {}

    def take(self, worker: int, weight: int, arrays: Arrays) -> None:
        """A worker's buffers that are not what they were at first, after so many pushes."""
        if weight:
            self._newest[worker] = weight, arrays

    def mean(self) -> Arrays:
        """Of each buffer that any of them has told (`mean_of`)."""
        names = sorted({name for _, arrays in self._newest.values() for name in arrays})
        told = self._newest.values()
        return {name: mean_of([(weight, held[name]) for weight, held in told if name in held]) for name in names}


def kept_arrays(module: torch.nn.Module) -> Arrays:
    """What the module's state_dict holds beside trainable parameters: copies of buffers, and frozen parameters."""
    frozen = {name: array_of(values) for name, values in module.named_parameters() if not values.requires_grad}
    kept = module.state_dict()
    buffers = {name: array_of(values).copy() for name, values in module.named_buffers() if name in kept}
    return {**frozen, **buffers}


def to_json(arrays: Arrays) -> dict[str, Any]:
    """For a checkpoint's state."""
    return {
        name: {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.reshape(-1).tolist()}
        for name, array in arrays.items()
    }


def load_into(module: torch.nn.Module, told: dict[str, Any], where: str) -> None:
    """Set buffers to what `to_json` made of them."""
    buffers = dict(module.named_buffers())
    for name, values in told.items():
        array = np.array(values["values"], dtype=values["dtype"]).reshape(values["shape"])
        if name not in buffers or tuple(buffers[name].shape) != array.shape:
            raise UserError(f"{where} holds a buffer {name} of shape {array.shape}, which the module has not")
        buffers[name].copy_(torch.from_numpy(array))
