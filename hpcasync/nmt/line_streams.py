"""Text in and out, line by line: decoded input with numbered errors, translations as lines."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from hpcasync.data.text import read_lines, read_stream
from hpcasync.errors import UserError, describe
from hpcasync.nmt.search import Hypothesis

OutputFormat = Literal["best", "best-with-score", "nbest"]


def input_lines(path: Path | None) -> Iterator[str]:
    """The lines of a file (plain or gzip), of a pipe that has a path, or of standard input (None or "-").

    Raises:
        UserError: the file cannot be read, or a line is no UTF-8; while it is read.
    """
    path = None if str(path) == "-" else path
    name = "standard input" if path is None else str(path)
    for number, line in enumerate(_raw_lines(path), start=1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}, line {number}: invalid UTF-8 (byte {error.start + 1} is 0x{line[error.start]:02x}); "
                "convert the text, for example with `iconv -t UTF-8`"
            ) from error


def read_documents(paths: Sequence[Path]) -> list[list[str]]:
    """The lines of each of several files; "-" is standard input.

    Raises:
        UserError: as `input_lines`.
    """
    if sum(str(path) == "-" for path in paths) > 1:
        raise UserError("standard input (-) can be given once only")
    return [list(input_lines(path)) for path in paths]


def format_translation(number: int, hypotheses: Sequence[Hypothesis], output_format: OutputFormat) -> str:
    """The lines of a sentence, each with its end.

    "best": the text. "best-with-score": text, tab, score. "nbest": `NUMBER ||| TEXT ||| SCORE` for every hypothesis, as
    Moses writes it, with sentences numbered from 0.
    """
    if output_format == "nbest":
        return "".join(f"{number} ||| {_one_line(h.text)} ||| {h.score:.6f}\n" for h in hypotheses)
    best = hypotheses[0]
    score = f"\t{best.score:.6f}" if output_format == "best-with-score" else ""
    return f"{_one_line(best.text)}{score}\n"


@contextmanager
def open_output(path: Path | None) -> Iterator[BinaryIO]:
    """Open a file for writing, or take standard output (None or "-")."""
    if path is None or str(path) == "-":
        yield sys.stdout.buffer
        return
    try:
        stream = path.open("wb")
    except OSError as error:
        raise UserError(f"cannot write {path}: {describe(error, 'choose another output')}") from error
    try:
        yield stream
    except BaseException:
        with suppress(OSError):  # what could not be written before cannot be written now either
            stream.close()
        raise
    try:
        stream.close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {describe(error, 'choose another output')}") from error


def write_line(line: str, stream: BinaryIO, name: str) -> None:
    """Write a line, and whatever has been buffered, at once.

    Raises:
        UserError: the disk is full, for one. BrokenPipeError: the reader is gone.
    """
    try:
        stream.write(line.encode())
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {name}: {describe(error, 'choose another output')}") from error


def _raw_lines(path: Path | None) -> Iterator[bytes]:
    is_stream = path is None or (path.exists() and not path.is_file() and not path.is_dir())
    return read_stream(path) if path is None or is_stream else read_lines(path)


def _one_line(text: str) -> str:
    """A model with byte pieces can spell a line break."""
    return text.replace("\n", " ").replace("\r", " ")
