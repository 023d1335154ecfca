"""Snapshots and checkpoints in a run directory: written in the background, complete or not there at all.

A snapshot holds the parameters of one version, to be scored and to translate with. A checkpoint holds one file per
shard with parameters, averages and optimizer state, to go on from. Both are directories that get their final name by
one rename, after their files are on disk; nothing is ever loaded by pickle.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors

from hpcasync.comm.shards import Shard
from hpcasync.errors import UserError

PARAMETERS_FILE = "parameters.safetensors"
STATE_FILE = "state.json"
_PARTIAL = ".partial"


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash, sees the old text or the new one."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_snapshot(directory: Path, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Write a snapshot directory: parameters by name, and JSON state."""
    partial = directory.with_name(directory.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_arrays(arrays, partial / PARAMETERS_FILE)
    _sync_file(partial / PARAMETERS_FILE)
    write_text_atomically(partial / STATE_FILE, json.dumps(state, indent=1))
    _publish(partial, directory)


class BackgroundWriter:
    """Runs writes in a thread, one after the other; each has the name of what it writes."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._running: list[tuple[str, Future[None]]] = []

    def submit(self, name: str, write: Callable[[], None]) -> None:
        """Start a write as soon as those before it are done."""
        self._running.append((name, self._executor.submit(write)))

    def poll(self) -> list[str]:
        """Names of the writes that have been completed since the last call; raises what one of them raised."""
        done = [(name, future) for name, future in self._running if future.done()]
        self._running = [item for item in self._running if item not in done]
        for _, future in done:
            future.result()
        return [name for name, _ in done]

    def wait(self) -> list[str]:
        """Like `poll`, after waiting for all that were started."""
        for _, future in self._running:
            future.result()
        return self.poll()


class ShardWriter(BackgroundWriter):
    """Writes this rank's shard of checkpoints (`ps.server.ShardSaver`)."""

    def __init__(self, checkpoints: Path, num_shards: int) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._num_shards = num_shards

    def save_shard(self, name: str, server_index: int, shard: Shard, tensors: dict[str, torch.Tensor]) -> None:
        """Start to write a shard file into the checkpoint's directory that is not complete yet."""
        path = self._checkpoints / (name + _PARTIAL) / _shard_file(server_index, self._num_shards)
        self.submit(name, lambda: _write_shard(path, shard, tensors))


class CheckpointDirectory:
    """The coordinator's view of RUN_DIR/checkpoints: completes a checkpoint with its last shard, removes old ones."""

    def __init__(self, checkpoints: Path, num_shards: int, keep: int) -> None:
        self._checkpoints = checkpoints
        self._num_shards = num_shards
        self._keep = keep
        self._states: dict[str, dict[str, Any]] = {}
        self._num_saved: Counter[str] = Counter()

    def begin(self, name: str, state: dict[str, Any]) -> None:
        """Announce a checkpoint: its state is written when its last shard is there."""
        shutil.rmtree(self._checkpoints / (name + _PARTIAL), ignore_errors=True)
        self._num_saved[name] = 0
        (self._checkpoints / (name + _PARTIAL)).mkdir(parents=True)
        self._states[name] = {**state, "num_shards": self._num_shards}

    def shard_saved(self, name: str) -> bool:
        """One more shard file is complete; return whether the checkpoint is."""
        self._num_saved[name] += 1
        if self._num_saved[name] < self._num_shards:
            return False
        partial = self._checkpoints / (name + _PARTIAL)
        write_text_atomically(partial / STATE_FILE, json.dumps(self._states.pop(name), indent=1))
        _publish(partial, self._checkpoints / name)
        for old in list_complete(self._checkpoints)[: -self._keep]:
            _remove(old)
        return True


def list_complete(directory: Path) -> list[Path]:
    """Complete snapshots or checkpoints, oldest version first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if (path / STATE_FILE).is_file() and not path.name.endswith(_PARTIAL)]
    return sorted(found, key=lambda path: path.name)


def read_state(directory: Path) -> dict[str, Any]:
    """The JSON state of a snapshot or checkpoint.

    Raises:
        UserError: the file is missing or no JSON object.
    """
    path = directory / STATE_FILE
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove {directory} to use an older one") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no JSON object; remove {directory} to use an older one")
    return state


def read_shard(checkpoint: Path, num_shards: int, shard: Shard) -> dict[str, torch.Tensor]:
    """The slice [start, stop) of a checkpoint's vectors, from however many shard files it has; scalars as they are.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for index in range(num_shards):
        path = checkpoint / _shard_file(index, num_shards)
        try:
            with safe_open(path, framework="pt") as file:
                start, stop = (int(file.metadata()[key]) for key in ("start", "stop"))
                low, high = max(start, shard.start), min(stop, shard.stop)
                if low >= high:
                    continue
                for key in file.keys():  # noqa: SIM118 - no mapping, an iterator over it is not offered
                    part = file.get_slice(key)
                    is_vector = part.get_shape() == [stop - start]
                    parts.setdefault(key, []).append(
                        part[low - start : high - start] if is_vector else file.get_tensor(key)
                    )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}); remove {checkpoint} to resume from an older one"
            ) from error
    tensors = {key: torch.cat(values) if values[0].dim() else values[0] for key, values in parts.items()}
    if "parameters" not in tensors or tensors["parameters"].numel() != shard.size:
        raise UserError(
            f"{checkpoint} does not cover the parameters of this model; remove it to resume from an older one"
        )
    return tensors


def _shard_file(index: int, num_shards: int) -> str:
    return f"shard-{index:05d}-of-{num_shards:05d}.safetensors"


def _write_shard(path: Path, shard: Shard, tensors: dict[str, torch.Tensor]) -> None:
    save_tensors(tensors, path, metadata={"start": str(shard.start), "stop": str(shard.stop)})
    _sync_file(path)


def _remove(directory: Path) -> None:
    """Remove a complete directory so that at no moment a part of it looks complete."""
    partial = directory.with_name(directory.name + _PARTIAL)
    directory.rename(partial)
    shutil.rmtree(partial)


def _publish(partial: Path, directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)
    _sync_file(directory.parent)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
