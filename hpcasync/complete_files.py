"""Files and directories that are complete and on disk, or not there at all.

A directory gets its final name by one rename, after its files and their names are on disk: a crash at any moment leaves
what was there before.
"""

import os
import shutil
from pathlib import Path

# Of a complete snapshot or checkpoint.
STATE_FILE = "state.json"
PARTIAL = ".partial"


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader, or a crash, sees the old text or the new one."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def list_complete(directory: Path) -> list[Path]:
    """Complete snapshots or checkpoints, oldest version first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if (path / STATE_FILE).is_file() and not path.name.endswith(PARTIAL)]
    return sorted(found, key=lambda path: path.name)


def partial_of(directory: Path) -> Path:
    """Where a directory is written before it is complete."""
    return directory.with_name(directory.name + PARTIAL)


def publish(directory: Path) -> None:
    """Give a directory that was written as `partial_of(directory)` its name; replaces one of that name."""
    partial = partial_of(directory)
    sync_path(partial)
    old = directory.with_name(f"{directory.name}.old{PARTIAL}")
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
    partial.rename(directory)
    sync_path(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_complete(directory: Path) -> None:
    """Remove a complete directory so that at no moment a part of it looks complete."""
    partial = partial_of(directory)
    directory.rename(partial)
    shutil.rmtree(partial)


def remove_partial(parent: Path) -> None:
    """Remove what a crash left; nothing may be writing there."""
    for path in parent.glob(f"*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def sync_path(path: Path) -> None:
    """Wait until a file's content, or a directory's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
