"""Snapshots of a program's run, in a module again."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from hpcasync.complete_files import list_complete
from hpcasync.errors import UserError
from hpcasync.runs.files import PARAMETERS_FILE


def load_snapshot(model: torch.nn.Module, path: str | Path) -> Path:
    """Load the parameters and buffers of a snapshot into a module, in place.

    Args:
        model: of the class and sizes that were trained, on any device.
        path: a snapshot, or a run directory: its newest one.

    Returns:
        the snapshot's directory.

    Raises:
        UserError: there is none, or it is of another model.
    """
    directory = Path(path)
    if not (directory / PARAMETERS_FILE).is_file():
        found = list_complete(directory / "snapshots")
        if not found:
            raise UserError(f"{path} is no snapshot, and no run directory that holds one")
        directory = found[-1]
    tensors = load_file(directory / PARAMETERS_FILE)
    own = dict([*model.named_parameters(), *model.named_buffers()])
    for name, values in tensors.items():
        if name not in own or own[name].shape != values.shape:
            raise UserError(f"{directory} holds {name} of shape {tuple(values.shape)}, which the model has not")
    with torch.no_grad():
        for name, values in tensors.items():
            own[name].copy_(values)
    return directory
