"""What a program gives a job, refused by what it should have been where it is something else."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from hpcasync.errors import UserError


def require_module(model: object, optimizer: object) -> None:
    """Raises a UserError unless these are what `hpcasync.join` takes, in its order."""
    for name, value, kind in (("model", model, torch.nn.Module), ("optimizer", optimizer, torch.optim.Optimizer)):
        if not isinstance(value, kind):
            raise UserError(
                f"hpcasync.join(model, optimizer, …): the {name} is a {type(value).__name__}, not a torch "
                f"{kind.__name__}"
            )
    assert isinstance(model, torch.nn.Module)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UserError(f"{name} is on the meta device, and has no values: join when it has them (module.to_empty)")


def require_loader(loader: object) -> None:
    """Raises a UserError unless this is a DataLoader that makes batches."""
    if not isinstance(loader, DataLoader):
        raise UserError(f"the job's loop takes its batches from a torch DataLoader, not from a {type(loader).__name__}")
    if loader.batch_size is None and loader.batch_sampler is None:
        raise UserError("the job's loop needs a DataLoader with batches: give it batch_size or a batch_sampler")


def as_number(what: str, value: Any) -> float:
    """A number, or a tensor of one element.

    Raises:
        UserError: it is neither.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
        raise UserError(f"{what} takes a number, not a {type(value).__name__}{shape}") from error
