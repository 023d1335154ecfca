"""Checkpoints: complete or not there, readable in other shards, and clear words about damage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcasync.comm.shards import Shard, cut_shards
from hpcasync.complete_files import list_complete
from hpcasync.config.validation import CheckpointConfig
from hpcasync.errors import UserError
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.runs.checkpoints import CheckpointDirectory, SavedCheckpoint, ShardWriter, read_shard
from hpcasync.runs.files import read_state

NUM_ELEMENTS = 100
VECTORS = {
    "parameters": torch.arange(NUM_ELEMENTS, dtype=torch.float32),
    "ema": torch.arange(NUM_ELEMENTS, dtype=torch.float32) + 0.5,
    "optimizer.exp_avg": -torch.arange(NUM_ELEMENTS, dtype=torch.float32),
}
STEP = torch.tensor(7.0)


def make_directory(checkpoints: Path, num_shards: int, keep: int = 10, **config: int) -> CheckpointDirectory:
    return CheckpointDirectory(checkpoints, num_shards, CheckpointConfig(keep=keep, **config))


def save_checkpoint(checkpoints: Path, name: str, num_shards: int, **state: Any) -> Path:
    """Write a checkpoint as the servers do."""
    save_into(make_directory(checkpoints, num_shards), checkpoints, name, num_shards, **state)
    return checkpoints / name


def save_into(
    directory: CheckpointDirectory, checkpoints: Path, name: str, num_shards: int, *, best: str = "", **state: Any
) -> None:
    writer = ShardWriter(checkpoints, num_shards)
    assert directory.begin(name, state, 1) == ""
    for index, shard in enumerate(cut_shards(NUM_ELEMENTS, num_shards)):
        tensors = {key: vector[shard.start : shard.stop].clone() for key, vector in VECTORS.items()}
        writer.save_shard(name, index, shard, {**tensors, "optimizer.step": STEP})
        [saved] = writer.wait()
        assert saved.error == ""
        is_last = index == num_shards - 1
        assert directory.shard_saved(saved, {best}) == (SavedCheckpoint(name) if is_last else None)


@pytest.mark.parametrize(("num_before", "num_after"), [(1, 1), (1, 3), (3, 2), (2, 5)])
def test_a_checkpoint_is_read_in_other_shards(tmp_path: Path, num_before: int, num_after: int) -> None:
    checkpoint = save_checkpoint(tmp_path, "u00000004", num_before, answer=42)
    state = read_state(checkpoint)
    assert (state["answer"], state["num_shards"], len(state["files"])) == (42, num_before, num_before)
    for shard in cut_shards(NUM_ELEMENTS, num_after):
        tensors = read_shard(checkpoint, num_before, shard)
        assert set(tensors) == {*VECTORS, "optimizer.step"}
        assert torch.equal(tensors["optimizer.step"], STEP)
        for key, vector in VECTORS.items():
            assert torch.equal(tensors[key], vector[shard.start : shard.stop])


def test_a_checkpoint_counts_when_its_last_shard_is_there(tmp_path: Path) -> None:
    directory = make_directory(tmp_path, 2)
    assert directory.begin("u00000001", {}, 1) == ""
    assert directory.shard_saved(SavedShard("u00000001", "b", "01", 7)) is None and list_complete(tmp_path) == []
    assert not directory.newest
    assert directory.shard_saved(SavedShard("u00000001", "a", "02", 8)) == SavedCheckpoint("u00000001")
    assert directory.newest == tmp_path / "u00000001"
    files = {"a": {"sha256": "02", "bytes": 8}, "b": {"sha256": "01", "bytes": 7}}
    assert read_state(tmp_path / "u00000001") == {"num_shards": 2, "files": files}


def test_a_checkpoint_saved_again_replaces_the_first(tmp_path: Path) -> None:
    directory = make_directory(tmp_path, 2)
    save_into(directory, tmp_path, "u00000001", 2, attempt=1)
    save_into(directory, tmp_path, "u00000001", 2, attempt=2)
    assert read_state(tmp_path / "u00000001")["attempt"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["u00000001"]


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
    directory = make_directory(tmp_path, 1, keep=2, keep_every=4)
    for number in (1, 2, 3, 4, 5, 10, 9):
        save_into(directory, tmp_path, f"u{number:08d}", 1, best="u00000002")
    kept = ["u00000002", "u00000004", "u00000009", "u00000010"]
    assert [path.name for path in list_complete(tmp_path)] == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_a_shard_that_could_not_be_written_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    directory = make_directory(tmp_path, 2)
    save_into(directory, tmp_path, "u00000001", 2)
    assert directory.begin("u00000002", {}, 1) == ""
    assert directory.shard_saved(SavedShard("u00000002", "a", error="No space left on device")) is None
    result = directory.shard_saved(SavedShard("u00000002", "b", "01", 7))
    assert result == SavedCheckpoint("u00000002", error="a: No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["u00000001"]
    read_shard(tmp_path / "u00000001", 2, Shard(0, NUM_ELEMENTS))


def test_space_is_looked_for_before(tmp_path: Path) -> None:
    directory = make_directory(tmp_path, 1)
    assert "it takes 1,048,576,000,000.0 MiB and " in directory.begin("u00000001", {}, 1_048_576_000_000 * 2**20)
    save_into(directory, tmp_path, "u00000001", 1)
    assert directory.begin("u00000002", {}, 2**80) == "", "the size of the one before is known better"


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 1)
    assert make_directory(tmp_path, 1).begin("u00000001", {}, 1) == ""
    writer.save_shard("u00000001", 0, Shard(0, 2), {"parameters": torch.tensor([1.0, float("nan")])})
    [saved] = writer.wait()
    assert saved.error == "the parameters are not finite"


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
    with pytest.raises(UserError, match=r"cannot read .*shard-00001-of-00002.safetensors: .*; remove .*u00000004"):
        read_shard(checkpoint, 2, Shard(0, NUM_ELEMENTS))


@pytest.mark.parametrize("how", ["one bit", "another checkpoint's", "another server's"])
def test_a_shard_of_another_content_is_named(tmp_path: Path, how: str) -> None:
    """Files that can be read, and are not what was written."""
    checkpoint, other = (save_checkpoint(tmp_path, f"u0000000{number}", 2, number=number) for number in (1, 2))
    name = "shard-00001-of-00002.safetensors"
    content = bytearray((checkpoint / name).read_bytes())
    content[-1] ^= 1
    if how == "another checkpoint's":
        VECTORS["parameters"][-1] += 1
        content = bytearray((save_checkpoint(tmp_path, "u00000003", 2) / name).read_bytes())
        VECTORS["parameters"][-1] -= 1
    elif how == "another server's":
        content = bytearray((other / name.replace("00001", "00000")).read_bytes())
    (checkpoint / name).write_bytes(content)
    with pytest.raises(
        UserError, match=f"u00000001/{name} is not what was written .*: restore it, or remove .*u00000001"
    ):
        read_shard(checkpoint, 2, Shard(0, NUM_ELEMENTS))
    read_shard(other, 2, Shard(0, NUM_ELEMENTS))


@pytest.mark.parametrize("key", ["answer", "num_shards", "files"])
def test_a_changed_state_is_named(tmp_path: Path, key: str) -> None:
    checkpoint = save_checkpoint(tmp_path, "u00000001", 1, answer=42)
    state = json.loads((checkpoint / "state.json").read_text())
    state[key] = {} if key == "files" else 7
    (checkpoint / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"u00000001/state.json was changed after it was written; remove .*u00000001"):
        read_state(checkpoint)


def test_a_checkpoint_of_fewer_parameters_does_not_fit(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, "u00000004", 2)
    with pytest.raises(UserError, match="u00000004 does not cover the parameters of this model"):
        read_shard(checkpoint, 2, Shard(64, NUM_ELEMENTS + 16))
    with pytest.raises(UserError, match="does not cover"):
        read_shard(checkpoint, 2, Shard(NUM_ELEMENTS, NUM_ELEMENTS + 16))
