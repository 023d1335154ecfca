"""A crash at any moment of saving, and a power failure, leave a checkpoint to go on from; a full disk is survived."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hpcasync.comm.shards import Shard
from hpcasync.complete_files import list_complete
from hpcasync.config.validation import CheckpointConfig
from hpcasync.runs.checkpoints import CheckpointDirectory, ShardWriter, read_shard
from hpcasync.runs.files import write_snapshot
from hpcasync.train.records.console import Console
from hpcasync.train.records.recorder import Recorder

PROGRAM = Path(__file__).parent / "programs" / "crash_while_saving.py"


@pytest.mark.timeout(900)  # ten seconds on an idle machine
def test_killed_at_every_call_and_at_every_seventh_byte(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), str(tmp_path)], capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    num_calls, num_bytes = map(int, done.stdout.split())
    assert num_calls > 20 and num_bytes > 50, done.stdout


def test_a_name_is_given_after_everything_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For power failures, which lose what was not synced."""
    synced: list[Path] = []
    published: list[Path] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    def watched_rename(path: Path, target: Path) -> Path:
        if path.suffix == ".partial" and path.is_dir():
            # state.json was synced before it got its own name.
            names = {".".join(file.name.split(".")[:2]) for file in synced if file.parent == path}
            assert names == {file.name for file in path.iterdir()} and path in synced
            published.append(target)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    save(tmp_path, 1)
    assert write_snapshot(tmp_path / "u00000002", {}, {}).error == ""
    assert published == [tmp_path / "u00000001", tmp_path / "u00000002"]
    assert synced[-1] == tmp_path


def save(checkpoints: Path, number: int, num_elements: int = 4) -> str:
    """Save a checkpoint; returns the error."""
    directory = CheckpointDirectory(checkpoints, 1, CheckpointConfig())
    writer = ShardWriter(checkpoints, 1)
    name = f"u{number:08d}"
    if error := directory.begin(name, {}, 1):
        return error
    tensors = {"parameters": torch.full((num_elements,), float(number))}
    writer.save_shard(name, 0, Shard(0, num_elements), tensors)
    [saved] = writer.wait()
    result = directory.shard_saved(saved)
    assert result is not None
    return result.error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(small_disk: Path) -> None:
    assert save(small_disk, 1, 50_000) == ""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(760_000))
    # Enough for what `begin` expects, not for the file.
    assert "No space left on device" in save(small_disk, 2, 50_000)
    assert [path.name for path in list_complete(small_disk)] == ["u00000001"]
    read_shard(small_disk / "u00000001", 1, Shard(0, 50_000))
    snapshot = write_snapshot(small_disk / "u00000003", {"a": torch.zeros(50_000).numpy()}, {})
    assert "No space left on device" in snapshot.error
    assert {path.name for path in small_disk.iterdir()} == {"filler", "u00000001"}
    filler.unlink()
    assert save(small_disk, 2, 50_000) == ""


def test_a_read_only_directory(small_disk: Path) -> None:
    assert save(small_disk, 1) == ""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert save(small_disk, 2) == "Read-only file system"
    assert write_snapshot(small_disk / "u00000003", {}, {}).error == "Read-only file system"
    assert [path.name for path in list_complete(small_disk)] == ["u00000001"]


def test_records_on_a_full_disk(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said once for each file, and once more when it can be written again; no line is lost or cut."""
    from hpcasync.config.schedule import StopConfig
    from hpcasync.train.records.tensorboard import ScalarFile

    console = Console(StopConfig(updates=1), 10)
    recorder = Recorder(
        small_disk, console, every=1, trackers=[ScalarFile(small_disk / "tensorboard")], batches_per_epoch=10
    )
    recorder.event("start")
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        while True:
            try:
                os.write(file.fileno(), bytes(4096))
            except OSError:
                break
    scores = {"name": "u1", "num_updates": 1, "wall_seconds": 1.0, "loss": 1, "perplexity": 2, "bleu": 3, "chrf": 4}
    for number in range(300):
        recorder.event("some", text="x" * 50, number=number)
        recorder.validation(scores, is_best=False)
    filler.unlink()
    recorder.event("last")
    recorder.validation(scores, is_best=False)
    recorder.close()
    said = [line for line in capsys.readouterr().out.splitlines() if "written" in line]
    assert sorted(said) == [
        "metrics.jsonl can be written again",
        "metrics.jsonl cannot be written: No space left on device; training goes on",
        "tensorboard can be written again",
        "tensorboard cannot be written: No space left on device; training goes on",
    ]
