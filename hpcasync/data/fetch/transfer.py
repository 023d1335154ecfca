"""Receiving one URL into one file, with resumption."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3

from hpcasync import __version__
from hpcasync.data.progress import progress, say
from hpcasync.errors import UserError

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0)
_LONGEST_WAIT_SECONDS = 60.0
_TIMEOUT_SECONDS = (15.0, 60.0)  # to connect, and between two reads
_READ_BYTES = 1 << 16
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class _TransientError(Exception):
    """Something that may pass: tried again."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class _UnreachableError(_TransientError):
    """No connection could be made."""


def receive(url: str, part: Path, retry_seconds: Sequence[float] = RETRY_SECONDS) -> None:
    """Receive a URL into `part`, going on after what an earlier call has left there.

    Errors that may pass are tried again after each of `retry_seconds`; what brought new bytes starts that count anew.
    A host that cannot be reached at all is not tried again: the machine is most likely offline.

    Raises:
        UserError: the server refuses, or cannot be reached; `part` keeps what has come.
    """
    failures, any_came = 0, False
    while True:
        size_before = _size(part)
        try:
            _receive_rest(url, part)
            return
        except _TransientError as error:
            came_on = _size(part) > size_before
            any_came = any_came or came_on
            failures = 1 if came_on else failures + 1
            if failures > len(retry_seconds) or (isinstance(error, _UnreachableError) and not any_came):
                raise _give_up(url, part, error) from error
            wait_seconds = min(max(retry_seconds[failures - 1], error.wait_seconds), _LONGEST_WAIT_SECONDS)
            say(f"{urlsplit(url).hostname} {error}; trying again in {wait_seconds:g} s")
            time.sleep(wait_seconds)


def _give_up(url: str, part: Path, error: _TransientError) -> UserError:
    size = _size(part)
    kept = f" ({size:,} bytes are kept: run the command again to go on from there)" if size else ""
    return UserError(f"cannot fetch {url}: {urlsplit(url).hostname} {error}; give --mirror DIR|URL{kept}")


def _receive_rest(url: str, part: Path) -> None:
    start = _size(part)
    response = _request(url, part, start)
    with response:
        if response.status_code == 416:  # nothing after `start`: complete, or not the same file
            if response.headers.get("Content-Range") != f"bytes */{start}":
                part.unlink()
                raise _TransientError("has another file than before")
            return
        if response.status_code == 200:
            start = 0
            _remember_version(response, part)
        elif response.status_code != 206 or not _begins_at(response, start):
            raise _refusal(url, response)
        _write(response, part, start)


def _request(url: str, part: Path, start: int) -> requests.Response:
    # A range of another version of the file is of no use: If-Range asks for all of it then.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"hpcasync/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
        version = _version_path(part)
        if version.exists():
            headers["If-Range"] = version.read_text()
    try:
        return requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS)
    except requests.exceptions.SSLError as error:
        raise UserError(f"cannot fetch {url}: no trusted connection ({error}); give --mirror DIR|URL") from error
    except requests.ConnectionError as error:
        raise _UnreachableError("cannot be reached (is this machine offline?)") from error
    except requests.Timeout as error:
        raise _TransientError("does not answer") from error
    except requests.RequestException as error:
        raise UserError(f"cannot fetch {url}: {error}") from error


def _refusal(url: str, response: requests.Response) -> Exception:
    status = f"{response.status_code} {response.reason}"
    if response.status_code in _TRANSIENT:
        wait = response.headers.get("Retry-After", "")
        return _TransientError(f"answers {status}", float(wait) if wait.isdigit() else 0.0)
    return UserError(f"cannot fetch {url}: {urlsplit(url).hostname} answers {status}; give --mirror DIR|URL")


def _write(response: requests.Response, part: Path, start: int) -> None:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    name = part.name.removesuffix(".part")
    with part.open("ab" if start else "wb") as output, progress(name, total, unit="bytes", done=start) as advance:
        chunks = response.raw.stream(_READ_BYTES, decode_content=False)
        while chunk := _next_chunk(chunks):
            output.write(chunk)
            advance(len(chunk))
        if total is not None and output.tell() != total:
            raise _TransientError("ended the connection early")


def _next_chunk(chunks: Iterator[bytes]) -> bytes:
    try:
        return next(chunks, b"")
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _TransientError("broke the connection") from error


def _begins_at(response: requests.Response, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _version_path(part: Path) -> Path:
    return part.with_name(part.name + "-version")


def _remember_version(response: requests.Response, part: Path) -> None:
    version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if version and not version.startswith("W/"):
        _version_path(part).write_text(version)
    else:
        _version_path(part).unlink(missing_ok=True)


def discard(part: Path) -> None:
    """Forget what has been received."""
    part.unlink(missing_ok=True)
    _version_path(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
