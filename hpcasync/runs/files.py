"""Snapshots as files, and the JSON state that they and checkpoints have. Nothing is ever loaded by pickle."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file as save_arrays

from hpcasync.complete_files import STATE_FILE, partial_of, publish, sync_path, write_text_atomically
from hpcasync.data.digests import file_digest
from hpcasync.errors import UserError, describe

PARAMETERS_FILE = "parameters.safetensors"
FILES_KEY = "files"
# What a full disk, a quota or a read-only directory raise.
WRITE_ERRORS = (OSError, SafetensorError)
_DIGEST = "sha256"


@contextmanager
def permissions_of_new_files(path: Path) -> Iterator[None]:
    """Give a file that is written here the permissions of any new one: safetensors lets its owner alone read it."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


def explain(error: Exception) -> str:
    """Why a file could not be written, in a few words."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


@dataclass(frozen=True)
class SavedSnapshot:
    """What became of a snapshot; `error` is empty if it is complete."""

    name: str
    error: str = ""


def write_snapshot(directory: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> SavedSnapshot:
    """Write a snapshot directory: parameters by name, and JSON state."""
    partial = partial_of(directory)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with permissions_of_new_files(partial / PARAMETERS_FILE):
            save_arrays(arrays, partial / PARAMETERS_FILE)
        sync_path(partial / PARAMETERS_FILE)
        files = {PARAMETERS_FILE: {"sha256": file_digest(partial / PARAMETERS_FILE)}}
        write_state(partial, {**state, FILES_KEY: files})
        publish(directory)
    except WRITE_ERRORS as error:
        shutil.rmtree(partial, ignore_errors=True)
        return SavedSnapshot(directory.name, explain(error))
    return SavedSnapshot(directory.name)


def write_state(directory: Path, state: dict[str, Any]) -> None:
    """Write the JSON state of a snapshot or checkpoint, with a digest of what it says."""
    write_text_atomically(directory / STATE_FILE, json.dumps({_DIGEST: _state_digest(state), **state}, indent=1))


def read_state(directory: Path) -> dict[str, Any]:
    """The JSON state of a snapshot or checkpoint, without its digest.

    Raises:
        UserError: the file is missing, no JSON object, or not what was written.
    """
    path = directory / STATE_FILE
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {describe(error, f'remove {directory} to use an older one')}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no JSON object; remove {directory} to use an older one")
    digest = state.pop(_DIGEST, None)
    if digest is not None and digest != _state_digest(state):
        raise UserError(f"{path} was changed after it was written; remove {directory} to use an older one")
    return state


def _state_digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
