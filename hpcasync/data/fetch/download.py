"""Files from upstream or a mirror: resumed, checked by digest, put in place when they are right."""

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpcasync.data.digests import file_digest
from hpcasync.data.fetch.mirror import Mirror, RemoteFile
from hpcasync.data.fetch.transfer import RETRY_SECONDS, discard, receive
from hpcasync.data.progress import say
from hpcasync.errors import UserError, describe


def download(file: RemoteFile, directory: Path, mirror: Mirror, retry_seconds: Sequence[float] = RETRY_SECONDS) -> Path:
    """Fetch a file into a directory, unless the right one is there; returns its path.

    A file without a published digest gets `NAME.sha256` beside it when it is fetched, and is checked by that later.
    """
    path = directory / file.name
    try:
        if path.exists():
            _check_present(path, file)
            say(f"{path} is there already")
            return path
        origin = mirror.locate(file)
        directory.mkdir(parents=True, exist_ok=True)
        part = directory / f"{file.name}.part"
        with _locked(directory / f".{file.name}.lock"):
            _receive_checked(file, part, origin, retry_seconds)
            if file.digest is None:
                digest = file_digest(part)
                _noted_digest(path).write_text(f"{digest}  {file.name}\n")
                say(f"{file.name}: no published digest to check by; noted SHA-256 {digest}")
            part.rename(path)
            discard(part)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or directory}: {describe(error, 'name another directory')}"
        ) from error
    return path


def _receive_checked(file: RemoteFile, part: Path, origin: Path | str, retry_seconds: Sequence[float]) -> None:
    was_begun = part.exists() and part.stat().st_size > 0
    if isinstance(origin, Path):
        discard(part)
        shutil.copyfile(origin, part)
    else:
        receive(origin, part, retry_seconds)
    if file.digest is None:
        return
    algorithm, expected = file.digest.split(":")
    found = file_digest(part, algorithm)
    if found == expected:
        return
    discard(part)
    if was_begun and not isinstance(origin, Path):
        say(f"{file.name}: what an earlier download left does not fit; starting anew")
        _receive_checked(file, part, origin, retry_seconds)
        return
    raise UserError(
        f"{origin} is not the file expected: its {algorithm.upper()} is {found}, published is {expected}; "
        "it has changed upstream, or the mirror is wrong: give another --mirror DIR|URL"
    )


def _check_present(path: Path, file: RemoteFile) -> None:
    algorithm, expected = "sha256", ""
    if file.digest is not None:
        algorithm, expected = file.digest.split(":")
    elif _noted_digest(path).is_file():
        expected = _noted_digest(path).read_text().split()[0]
    if expected and file_digest(path, algorithm) != expected:
        raise UserError(f"{path} is there but is not the file expected (its {algorithm.upper()} differs); remove it")


def _noted_digest(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another command is fetching into {lock.parent}; wait for it") from error
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
