"""A directory that appears complete or not at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from hpcasync.complete_files import partial_of, sync_path
from hpcasync.data.manifest import (
    MANIFEST_NAME,
    SIDES,
    TEST_SETS,
    FileRecord,
    held_out_file,
    read_manifest,
    train_file,
    vocabulary_file,
)
from hpcasync.errors import UserError, describe
from hpcasync.sole_writer import LOCK_FILE, sole_writer

_WRITTEN = (
    {MANIFEST_NAME, LOCK_FILE}
    | {vocabulary_file(side) for side in SIDES}
    | {train_file(side, "tokens") for side in SIDES}
    | {train_file(side, "offsets") for side in SIDES}
    | {held_out_file(name, side) for name in ("valid", *TEST_SETS) for side in SIDES}
)


class HashedFile:
    """A file that is written once, front to back, and knows its digest."""

    def __init__(self, path: Path) -> None:
        self._stream: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self._stream.close()

    def write(self, content: bytes | memoryview) -> None:
        self._stream.write(content)
        self._digest.update(content)
        self._size += memoryview(content).nbytes

    @property
    def record(self) -> FileRecord:
        return FileRecord(size=self._size, sha256=self._digest.hexdigest())


@contextmanager
def complete_directory(directory: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a directory to write into, which becomes `directory` when the context ends without an exception.

    What an earlier crash left beside it is removed first, file by file and only what `data prepare` writes.
    """
    directory = directory.resolve()
    partial = partial_of(directory)
    try:
        _check_free(directory, overwrite=overwrite)
        with sole_writer(partial, "wait for it or name another --out", "name another --out"):
            _check_ours(partial)
            _remove_written(partial)
            try:
                yield partial
            except BaseException:
                with suppress(OSError):
                    _remove_directory(partial)
                raise
            _replace(partial, directory, overwrite=overwrite)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or partial}: {describe(error, 'name another --out')}") from error


def _check_free(directory: Path, *, overwrite: bool) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"--out {directory} is a file; name a directory")
    names = {path.name for path in directory.iterdir()}
    if not names:
        return
    if MANIFEST_NAME not in names or names - _WRITTEN:
        strange = ", ".join(sorted(names - _WRITTEN)[:3]) or "no manifest"
        raise UserError(
            f"--out {directory} holds something that `data prepare` did not write ({strange}); name another"
        )
    read_manifest(directory)
    if not overwrite:
        raise UserError(f"--out {directory} already holds a prepared corpus; name another or give --overwrite")


def _check_ours(directory: Path) -> None:
    strange = sorted(path.name for path in directory.iterdir() if path.name not in _WRITTEN)
    if strange:
        raise UserError(
            f"{directory} is in the way and holds {strange[0]}, which `data prepare` did not write; remove it"
        )


def _remove_written(directory: Path) -> None:
    for name in _WRITTEN - {LOCK_FILE}:
        (directory / name).unlink(missing_ok=True)


def _remove_directory(directory: Path) -> None:
    _remove_written(directory)
    (directory / LOCK_FILE).unlink(missing_ok=True)
    directory.rmdir()


def _replace(partial: Path, directory: Path, *, overwrite: bool) -> None:
    sync_path(partial)
    _check_free(directory, overwrite=overwrite)
    old = directory.with_name(directory.name + ".replaced")
    if old.exists():  # of an earlier crash
        _check_ours(old)
        _remove_directory(old)
    if directory.exists() and any(directory.iterdir()):
        directory.rename(old)
    partial.rename(directory)  # with the lock: nobody else takes `partial` for left over
    (directory / LOCK_FILE).unlink()
    sync_path(directory.parent)
    if old.exists():
        _remove_directory(old)
