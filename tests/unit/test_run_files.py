"""Files of a run: complete or not there, readable in other shards, and clear words about damage."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from hpcasync.comm.shards import Shard, cut_shards
from hpcasync.errors import UserError
from hpcasync.train.run_files import (
    BackgroundWriter,
    CheckpointDirectory,
    ShardWriter,
    list_complete,
    read_shard,
    read_state,
    write_snapshot,
    write_text_atomically,
)

NUM_ELEMENTS = 100
VECTORS = {
    "parameters": torch.arange(NUM_ELEMENTS, dtype=torch.float32),
    "ema": torch.arange(NUM_ELEMENTS, dtype=torch.float32) + 0.5,
    "optimizer.exp_avg": -torch.arange(NUM_ELEMENTS, dtype=torch.float32),
}
STEP = torch.tensor(7.0)


def save_checkpoint(checkpoints: Path, name: str, num_shards: int, keep: int = 10, **state: Any) -> Path:
    """Write a checkpoint as the servers do."""
    directory = CheckpointDirectory(checkpoints, num_shards, keep)
    save_into(directory, checkpoints, name, num_shards, **state)
    return checkpoints / name


def save_into(directory: CheckpointDirectory, checkpoints: Path, name: str, num_shards: int, **state: Any) -> None:
    writer = ShardWriter(checkpoints, num_shards)
    directory.begin(name, state)
    for index, shard in enumerate(cut_shards(NUM_ELEMENTS, num_shards)):
        tensors = {key: vector[shard.start : shard.stop].clone() for key, vector in VECTORS.items()}
        writer.save_shard(name, index, shard, {**tensors, "optimizer.step": STEP})
        assert writer.wait() == [name]
        assert directory.shard_saved(name) == (index == num_shards - 1)


@pytest.mark.parametrize(("num_before", "num_after"), [(1, 1), (1, 3), (3, 2), (2, 5)])
def test_a_checkpoint_is_read_in_other_shards(tmp_path: Path, num_before: int, num_after: int) -> None:
    checkpoint = save_checkpoint(tmp_path, "u00000004", num_before, answer=42)
    state = read_state(checkpoint)
    assert state == {"answer": 42, "num_shards": num_before}
    for shard in cut_shards(NUM_ELEMENTS, num_after):
        tensors = read_shard(checkpoint, num_before, shard)
        assert set(tensors) == {*VECTORS, "optimizer.step"}
        assert torch.equal(tensors["optimizer.step"], STEP)
        for key, vector in VECTORS.items():
            assert torch.equal(tensors[key], vector[shard.start : shard.stop])


def test_a_checkpoint_counts_when_its_last_shard_is_there(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path, 2, 3)
    directory.begin("u00000001", {})
    (tmp_path / "u00000001.partial" / "shard-00000-of-00002.safetensors").write_bytes(b"")
    assert not directory.shard_saved("u00000001") and list_complete(tmp_path) == []
    assert directory.shard_saved("u00000001")
    assert list_complete(tmp_path) == [tmp_path / "u00000001"]


def test_a_checkpoint_saved_again_replaces_the_first(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path, 2, 3)
    save_into(directory, tmp_path, "u00000001", 2, attempt=1)
    save_into(directory, tmp_path, "u00000001", 2, attempt=2)
    assert read_state(tmp_path / "u00000001") == {"attempt": 2, "num_shards": 2}


def test_what_a_crash_left_is_no_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "u00000010", 1)
    (tmp_path / "u00000020.partial").mkdir()
    (tmp_path / "u00000020.partial" / "state.json").write_text("{}")
    (tmp_path / "u00000030").mkdir()  # without state.json
    assert list_complete(tmp_path) == [tmp_path / "u00000010"]
    assert list_complete(tmp_path / "absent") == []
    # The same update is saved again over it.
    (tmp_path / "u00000020.partial" / "shard-00007-of-00009.safetensors").write_bytes(b"old")
    checkpoint = save_checkpoint(tmp_path, "u00000020", 2)
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "shard-00000-of-00002.safetensors",
        "shard-00001-of-00002.safetensors",
        "state.json",
    ]


def test_old_checkpoints_are_removed(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path, 1, 2)
    for number in (1, 2, 10, 9):
        save_into(directory, tmp_path, f"u{number:08d}", 1)
    assert [path.name for path in list_complete(tmp_path)] == ["u00000009", "u00000010"]
    assert {path.name for path in tmp_path.iterdir()} == {"u00000009", "u00000010"}


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing", "no metadata"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    checkpoint = save_checkpoint(tmp_path, "u00000004", 2)
    path = checkpoint / "shard-00001-of-00002.safetensors"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "no metadata":
        from safetensors.torch import save_file

        save_file({"parameters": torch.zeros(4)}, path)
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\x00" * 64)
    with pytest.raises(UserError, match=r"shard-00001-of-00002.safetensors cannot be read .*; remove .*u00000004"):
        read_shard(checkpoint, 2, Shard(0, NUM_ELEMENTS))


def test_a_checkpoint_of_fewer_parameters_does_not_fit(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, "u00000004", 2)
    with pytest.raises(UserError, match="u00000004 does not cover the parameters of this model"):
        read_shard(checkpoint, 2, Shard(64, NUM_ELEMENTS + 16))
    with pytest.raises(UserError, match="does not cover"):
        read_shard(checkpoint, 2, Shard(NUM_ELEMENTS, NUM_ELEMENTS + 16))


def test_damaged_state(tmp_path: Path) -> None:
    for content, expected in (("{", "cannot be read"), ("[1]", "holds no JSON object")):
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(UserError, match=f"state.json {expected}"):
            read_state(tmp_path)
    (tmp_path / "state.json").unlink()
    with pytest.raises(UserError, match=r"state.json cannot be read"):
        read_state(tmp_path)


def test_snapshots(tmp_path: Path) -> None:
    arrays = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}
    for attempt in (1, 2):
        write_snapshot(tmp_path / "u00000001", arrays, {"attempt": attempt})
    assert {path.name for path in tmp_path.iterdir()} == {"u00000001"}
    assert json.loads((tmp_path / "u00000001" / "state.json").read_text()) == {"attempt": 2}
    with safe_open(tmp_path / "u00000001" / "parameters.safetensors", framework="np") as file:
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        write_text_atomically(tmp_path / "last", text)
        assert (tmp_path / "last").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_background_writes_come_in_order_and_errors_come_back() -> None:
    writer = BackgroundWriter()
    may_go_on = threading.Event()
    written: list[str] = []

    def first() -> None:
        may_go_on.wait(10)
        written.append("a")

    writer.submit("a", first)
    writer.submit("b", lambda: written.append("b"))
    assert writer.poll() == [] and written == []
    may_go_on.set()
    assert writer.wait() == ["a", "b"] and written == ["a", "b"]
    assert writer.poll() == [] and writer.wait() == []

    def fail() -> None:
        raise OSError("no space left")

    writer.submit("c", fail)
    with pytest.raises(OSError, match="no space left"):
        writer.wait()
