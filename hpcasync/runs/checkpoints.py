"""Checkpoints: one file per shard with parameters, averages and optimizer state, and the state of the run.

Every server writes its shard in the background; the coordinator completes the checkpoint with `state.json`, which holds
the digest of each file. What cannot be written (full disk, read-only directory) is told and leaves the checkpoints
before it as they are. Gradients are seeded by ticket (`train.loop.step`): no generator's state is needed to go on.
"""

import shutil
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file as save_tensors

from hpcasync.comm.shards import Shard
from hpcasync.complete_files import list_complete, partial_of, publish, remove_complete, sync_path
from hpcasync.config.validation import CheckpointConfig
from hpcasync.data.digests import file_digest
from hpcasync.errors import UserError, describe
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.runs.background_writer import BackgroundWriter
from hpcasync.runs.files import WRITE_ERRORS, explain, permissions_of_new_files, read_state, write_state
from hpcasync.runs.retention import superseded


class ShardWriter(BackgroundWriter[SavedShard]):
    """Writes this rank's shard of checkpoints (`ps.protocol.observer.ShardSaver`)."""

    def __init__(self, checkpoints: Path, num_shards: int) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self.num_shards = num_shards

    def save_shard(self, name: str, server_index: int, shard: Shard, tensors: dict[str, torch.Tensor]) -> None:
        """Start to write a shard file into the checkpoint's directory that is not complete yet."""
        path = partial_of(self._checkpoints / name) / _shard_file(server_index, self.num_shards)
        self.submit(lambda: _write_shard(name, path, shard, tensors))


@dataclass(frozen=True)
class SavedCheckpoint:
    """What became of a checkpoint.

    Attributes:
        name: such as "u00000400".
        error: why it was not written; empty if it is complete.
        warning: what else went wrong; empty if nothing did.
    """

    name: str
    error: str = ""
    warning: str = ""


@dataclass
class _Pending:
    state: dict[str, Any]
    shards: list[SavedShard] = field(default_factory=list)


class CheckpointDirectory:
    """The coordinator's view of RUN_DIR/checkpoints: completes a checkpoint with its last shard, removes old ones.

    Args:
        num_shards: shard files of a checkpoint.
        config: which ones are kept.
    """

    def __init__(self, checkpoints: Path, num_shards: int, config: CheckpointConfig) -> None:
        self._checkpoints = checkpoints
        self._num_shards = num_shards
        self._config = config
        self._pending: dict[str, _Pending] = {}
        self._num_bytes = 0  # of the last one

    @property
    def newest(self) -> Path | None:
        complete = list_complete(self._checkpoints)
        return complete[-1] if complete else None

    def begin(self, name: str, state: dict[str, Any], estimated_bytes: int) -> str:
        """Announce a checkpoint: its state is written when its last shard is there.

        Args:
            estimated_bytes: space that it takes, where none has been written yet.

        Returns:
            why it cannot be written, or nothing.
        """
        partial = partial_of(self._checkpoints / name)
        needed = self._num_bytes or estimated_bytes
        try:
            shutil.rmtree(partial, ignore_errors=True)
            free = shutil.disk_usage(self._checkpoints).free
            if free < needed:
                return f"it takes {_mib(needed)} and {self._checkpoints} has {_mib(free)} free"
            partial.mkdir(parents=True)
        except OSError as error:
            return explain(error)
        self._pending[name] = _Pending(state)
        return ""

    def shard_saved(self, saved: SavedShard, protected: Collection[str] = ()) -> SavedCheckpoint | None:
        """One more server has done its part; says what became of the checkpoint if that was the last one.

        Args:
            protected: names of checkpoints that are kept whatever their age.
        """
        pending = self._pending[saved.name]
        pending.shards.append(saved)
        if len(pending.shards) < self._num_shards:
            return None
        del self._pending[saved.name]
        error = next((f"{shard.file}: {shard.error}" for shard in pending.shards if shard.error), "")
        if not error:
            try:
                self._complete(saved.name, pending)
            except OSError as caught:
                error = explain(caught)
        if error:
            shutil.rmtree(partial_of(self._checkpoints / saved.name), ignore_errors=True)
            return SavedCheckpoint(saved.name, error=error)
        self._num_bytes = sum(shard.num_bytes for shard in pending.shards)
        return SavedCheckpoint(saved.name, warning=self._remove_old(protected))

    def _complete(self, name: str, pending: _Pending) -> None:
        files = {
            shard.file: {"sha256": shard.sha256, "bytes": shard.num_bytes}
            for shard in sorted(pending.shards, key=lambda shard: shard.file)
        }
        directory = self._checkpoints / name
        write_state(partial_of(directory), {**pending.state, "num_shards": self._num_shards, "files": files})
        publish(directory)

    def _remove_old(self, protected: Collection[str]) -> str:
        names = [path.name for path in list_complete(self._checkpoints)]
        keep, keep_every = self._config.keep, self._config.keep_every
        for name in superseded(names, keep=keep, keep_every=keep_every, protected=protected):
            try:
                remove_complete(self._checkpoints / name)
            except OSError as error:
                return f"the old checkpoint {name} cannot be removed: {explain(error)}"
        return ""


def read_shard(checkpoint: Path, num_shards: int, shard: Shard) -> dict[str, torch.Tensor]:
    """The slice [start, stop) of a checkpoint's vectors, from however many shard files it has; scalars as they are.

    Raises:
        UserError: a file is missing, damaged, not the one that was written, or does not fit the others.
    """
    digests = {name: values["sha256"] for name, values in read_state(checkpoint)["files"].items()}
    parts: list[tuple[int, dict[str, torch.Tensor]]] = []
    for index in range(num_shards):
        path = checkpoint / _shard_file(index, num_shards)
        try:
            path.open("rb").close()  # of a file that may not be read safetensors says that there is none
            with safe_open(path, framework="pt") as file:
                start, stop = (int(file.metadata()[key]) for key in ("start", "stop"))
                low, high = max(start, shard.start), min(stop, shard.stop)
                if low >= high:
                    continue
                _check_digest(path, digests[path.name])
                tensors: dict[str, torch.Tensor] = {}
                for key in file.keys():  # noqa: SIM118 - no mapping, an iterator over it is not offered
                    part = file.get_slice(key)
                    is_vector = part.get_shape() == [stop - start]
                    tensors[key] = part[low - start : high - start] if is_vector else file.get_tensor(key)
                parts.append((high - low, tensors))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"cannot read {path}: {describe(error, f'remove {checkpoint} to resume from an older one')}"
            ) from error
    tensors = _join(parts)
    if "parameters" not in tensors or tensors["parameters"].numel() != shard.size:
        raise UserError(
            f"{checkpoint} does not cover the parameters of this model; remove it to resume from an older one"
        )
    return tensors


def _join(parts: Sequence[tuple[int, dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """Vectors one after the other, each with its number of elements.

    Where optimizers differ one shard lacks what another keeps: that is zero there, and not looked at.
    """
    joined = {}
    for key in dict.fromkeys(key for _, tensors in parts for key in tensors):
        first = next(tensors[key] for _, tensors in parts if key in tensors)
        is_vector = first.dim() == 1
        vectors = ((tensors[key] if key in tensors else first.new_zeros(size)) for size, tensors in parts)
        joined[key] = torch.cat([*vectors]) if is_vector else first
    return joined


def _check_digest(path: Path, expected: str) -> None:
    found = file_digest(path)
    if found != expected:
        raise UserError(
            f"{path} is not what was written with its checkpoint (sha256 {found[:12]}…, was {expected[:12]}…): "
            f"restore it, or remove {path.parent} to resume from an older one"
        )


def _shard_file(index: int, num_shards: int) -> str:
    return f"shard-{index:05d}-of-{num_shards:05d}.safetensors"


def _write_shard(name: str, path: Path, shard: Shard, tensors: dict[str, torch.Tensor]) -> SavedShard:
    # By a norm: to look at every element takes twice the memory of all.
    if not torch.isfinite(torch.linalg.vector_norm(tensors["parameters"])):
        return SavedShard(name, path.name, error="the parameters are not finite")
    try:
        with permissions_of_new_files(path):
            save_tensors(tensors, path, metadata={"start": str(shard.start), "stop": str(shard.stop)})
        with ThreadPoolExecutor(1) as executor:
            digest = executor.submit(file_digest, path)  # read from memory while the disk is written
            sync_path(path)
        return SavedShard(name, path.name, digest.result(), path.stat().st_size)
    except WRITE_ERRORS as error:
        with suppress(OSError):
            path.unlink()  # makes room for what else is written
        return SavedShard(name, path.name, error=explain(error))


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
