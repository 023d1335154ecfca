"""Batches of any form on a device."""

from typing import Any

import torch


def moved_to(device: torch.device, batch: Any) -> Any:
    """A batch with its tensors on a device; it may be of lists, tuples, named tuples, dicts and objects with `to`."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return type(batch)({key: moved_to(device, value) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved_to(device, value) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved_to(device, value) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch
