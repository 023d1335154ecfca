"""Reading text: plain or gzip, UTF-8, one sentence a line.

Only "\\n" ends a line (so U+2028 and its like stay inside a sentence, as in every tool that counts lines); a "\\r"
before it is dropped, and so is a byte order mark at the start of a file.
"""

import codecs
import gzip
import io
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from hpcasync.errors import UserError, describe

_GZIP_MAGIC = b"\x1f\x8b"  # no UTF-8 text begins like this
_READ_BYTES = 1 << 20


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or a gzip file (told apart by content) for reading its uncompressed bytes.

    Raises:
        UserError: the file is missing, is no regular file, cannot be read, or is damaged gzip; also while it is read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path} is not a regular file; it has to be read more than once")
        with path.open("rb") as raw, _unpacked(raw, str(path)) as stream:
            yield stream
    except OSError as error:
        raise UserError(f"cannot read {path}: {describe(error, 'name a text file, plain or .gz')}") from error


@contextmanager
def _unpacked(raw: io.BufferedReader, name: str) -> Iterator[BinaryIO]:
    try:
        if raw.peek(2)[:2] in (_GZIP_MAGIC, _GZIP_MAGIC[:1]):  # a slow pipe may have given a single byte yet
            with gzip.GzipFile(fileobj=raw) as unpacked, io.BufferedReader(unpacked, _READ_BYTES) as stream:
                yield stream
        else:
            yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{name} is a damaged or truncated gzip file ({error}); fetch or compress it again") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file as bytes, without line ends."""
    with open_bytes(path) as stream:
        yield from _without_line_ends(stream)


def read_stream(path: Path | None) -> Iterator[bytes]:
    """The lines of what can be read once, as those of a file: a pipe that has a path, or None: standard input.

    Raises:
        UserError: it cannot be read, or is damaged gzip; while it is read.
    """
    name = "standard input" if path is None else str(path)
    try:
        with nullcontext(_standard_input()) if path is None else path.open("rb") as raw, _unpacked(raw, name) as stream:
            yield from _without_line_ends(stream)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from error


def _standard_input() -> io.BufferedReader:
    stream: Any = sys.stdin.buffer
    return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)


@contextmanager
def regular_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """The paths, with a copy in place of each that can be read only once: "-" (standard input), pipes."""
    if sum(str(path) == "-" for path in paths) > 1:
        raise UserError("standard input (-) can be given once only")
    with TemporaryDirectory(prefix="hpcasync-") as directory:
        yield [_copied(path, Path(directory) / str(number)) for number, path in enumerate(paths)]


def _copied(path: Path, directory: Path) -> Path:
    if str(path) != "-" and not path.is_fifo():
        return path
    copy = directory / ("standard-input" if str(path) == "-" else f"pipe-{path.name}")
    try:
        directory.mkdir()
        with copy.open("wb") as output:
            output.writelines(line + b"\n" for line in read_stream(None if str(path) == "-" else path))
    except OSError as error:
        raise UserError(f"cannot write {copy}: {describe(error, 'make room, or set TMPDIR')}") from error
    return copy


def _without_line_ends(stream: Iterable[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(stream):
        content = line.removesuffix(b"\n").rstrip(b"\r")
        yield content.removeprefix(codecs.BOM_UTF8) if number == 0 else content


def read_sentences(path: Path) -> list[str]:
    """All lines of a file that `count_lines` has accepted."""
    return [line.decode() for line in read_lines(path)]


def read_chunks(source: Path, target: Path, num_pairs: int) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Two files side by side, up to `num_pairs` lines of each at a time."""
    source_lines, target_lines = read_lines(source), read_lines(target)
    while True:
        chunk = list(islice(source_lines, num_pairs)), list(islice(target_lines, num_pairs))
        if len(chunk[0]) != len(chunk[1]):
            raise UserError(f"{source} or {target} changed while it was read")
        if not chunk[0]:
            return
        yield chunk


def count_lines(path: Path) -> int:
    """Count the lines of a file and check that all of it is UTF-8, in constant memory.

    Raises:
        UserError: as `open_bytes`; a line is no UTF-8, named by its number; or lines end with CR alone.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    num_lines, num_bare_returns, last = 0, 0, b"\n"
    with open_bytes(path) as stream:
        while chunk := stream.read(_READ_BYTES):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                break
            num_lines += chunk.count(b"\n")
            num_bare_returns += chunk.count(b"\r") - chunk.count(b"\r\n") - (last == b"\r" and chunk[:1] == b"\n")
            last = chunk[-1:]
        else:
            if not decoder.getstate()[0]:
                if num_bare_returns > num_lines + 1:
                    raise UserError(
                        f"{path} has {num_bare_returns} carriage returns (CR) but {num_lines} line feeds: it ends "
                        "lines as old Macintoshes did; convert it, for example with `tr '\\r' '\\n'`"
                    )
                return num_lines + (last != b"\n")
    raise _invalid_utf8(path)


def check_aligned(source: Path, target: Path) -> int:
    """Check that two files are the two sides of one corpus; returns the number of pairs.

    Raises:
        UserError: one path given twice, different numbers of lines, no lines; or as `count_lines`.
    """
    if is_same_file(source, target):
        raise UserError(f"{source} is given as source and as target; name the two sides of the corpus")
    num_source, num_target = count_lines(source), count_lines(target)
    if num_source != num_target:
        raise UserError(
            f"{source} has {num_source} lines but {target} has {num_target}: "
            "line n of one must be the translation of line n of the other"
        )
    if num_source == 0:
        raise UserError(f"{source} and {target} are empty")
    return num_source


def is_same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file.

    Raises:
        UserError: one of them is missing.
    """
    try:
        return first.samefile(second)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {describe(error, 'name a text file, plain or .gz')}") from error


def _invalid_utf8(path: Path) -> UserError:
    for number, line in enumerate(read_lines(path), start=1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            where = f"byte {error.start + 1} is 0x{line[error.start]:02x}"
            hint = "it looks like UTF-16" if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else where
            return UserError(
                f"{path}, line {number}: invalid UTF-8 ({hint}); convert the file, for example with `iconv -t UTF-8`"
            )
    return UserError(f"{path} changed while it was read")
