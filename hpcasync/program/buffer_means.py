"""A module's buffers over all workers: what checkpoints and snapshots hold of BatchNorm's running statistics."""

from typing import Any

import numpy as np
import torch

from hpcasync.errors import UserError

Arrays = dict[str, np.ndarray]


class BufferMeans:
    """The newest buffers that each worker has told of, and their mean by the gradients that each has pushed."""

    def __init__(self) -> None:
        self._newest: dict[int, tuple[int, Arrays]] = {}

    def take(self, worker: int, weight: int, arrays: Arrays) -> None:
        """A worker's buffers that are not what they were at first, after so many pushes."""
        if weight:
            self._newest[worker] = weight, arrays

    def mean(self) -> Arrays:
        """Of floating-point buffers the mean; of others those of the worker whose values are largest."""
        names = sorted({name for _, arrays in self._newest.values() for name in arrays})
        return {name: self._mean_of(name) for name in names}

    def _mean_of(self, name: str) -> np.ndarray:
        held = [(weight, arrays[name]) for weight, arrays in self._newest.values() if name in arrays]
        first = held[0][1]
        if not np.issubdtype(first.dtype, np.inexact):
            return max((array for _, array in held), key=lambda array: float(array.sum()))
        total = sum(weight for weight, _ in held)
        mean = sum(array.astype(np.float64) * (weight / total) for weight, array in held)
        return np.asarray(mean, dtype=first.dtype)


def changed_buffers(module: torch.nn.Module, names: list[str]) -> Arrays:
    """Copies of buffers by name."""
    buffers = dict(module.named_buffers())
    return {name: _array(buffers[name]).copy() for name in names}


def kept_arrays(module: torch.nn.Module) -> Arrays:
    """What the module's state_dict holds beside trainable parameters: copies of buffers, and frozen parameters."""
    names = {name for name, _ in module.named_buffers()}
    frozen = {name: _array(values) for name, values in module.named_parameters() if not values.requires_grad}
    return {**frozen, **changed_buffers(module, [name for name in module.state_dict() if name in names])}


def _array(tensor: torch.Tensor) -> np.ndarray:
    values = tensor.detach().cpu()
    # numpy has no bfloat16; float32 holds the same numbers.
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


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
