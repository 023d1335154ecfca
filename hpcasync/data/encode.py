"""Filtering and encoding of training pairs, in several processes, in the order of the input."""

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcasync.data.doubts import RESERVED
from hpcasync.data.text import read_chunks
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError

CHUNK_PAIRS = 4096
_NUM_LOOKED_AT = 50  # lines of a chunk with unknown pieces, for examples


@dataclass(frozen=True)
class Limits:
    """Which pairs are kept: 1 to `max_length` pieces on both sides, one at most `max_ratio` times the other.

    A `max_ratio` of infinity is none.
    """

    max_length: int = 256
    max_ratio: float = 4.0


@dataclass(frozen=True)
class EncodedSide:
    """One side of the kept pairs of a chunk: ids of all sentences end to end, and their lengths (int64)."""

    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    lengths: NDArray[np.int64]
    num_unknown: int
    unknown: Counter[str]  # what some of the unknown pieces were, and how often


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk of the corpus after filtering."""

    source: EncodedSide
    target: EncodedSide
    num_read: int
    dropped_empty: int
    dropped_length: int
    dropped_ratio: int


def token_dtype(vocabulary: Vocabulary) -> str:
    """The smallest of the two types of token files that holds every id of a vocabulary."""
    return "<u2" if len(vocabulary) < 1 << 16 else "<u4"


class PairEncoder:
    """Encodes and filters chunks of pairs; one in each process."""

    def __init__(self, source_model: Path, target_model: Path, limits: Limits) -> None:
        self._source = Vocabulary.load(source_model)
        self._target = Vocabulary.load(target_model)
        self._limits = limits

    def __call__(self, source_lines: list[bytes], target_lines: list[bytes]) -> EncodedChunk:
        """Encode the lines of one chunk, which `text.count_lines` has found to be UTF-8."""
        sources = self._source.encode_many(line.decode() for line in source_lines)
        targets = self._target.encode_many(line.decode() for line in target_lines)
        source_lengths = np.fromiter(map(len, sources), np.int64, len(sources))
        target_lengths = np.fromiter(map(len, targets), np.int64, len(targets))
        shorter, longer = np.minimum(source_lengths, target_lengths), np.maximum(source_lengths, target_lengths)
        empty = shorter == 0
        too_long = ~empty & (longer > self._limits.max_length)
        unequal = ~empty & ~too_long & (longer > self._limits.max_ratio * np.maximum(shorter, 1))
        kept = ~(empty | too_long | unequal)
        return EncodedChunk(
            source=_side(source_lines, sources, source_lengths, kept, self._source),
            target=_side(target_lines, targets, target_lengths, kept, self._target),
            num_read=len(sources),
            dropped_empty=int(empty.sum()),
            dropped_length=int(too_long.sum()),
            dropped_ratio=int(unequal.sum()),
        )


def _side(
    lines: list[bytes],
    sentences: list[list[int]],
    lengths: NDArray[np.int64],
    kept: NDArray[np.bool_],
    vocabulary: Vocabulary,
) -> EncodedSide:
    chosen = [sentence for sentence, keep in zip(sentences, kept, strict=True) if keep]
    lengths = lengths[kept]
    tokens = np.fromiter(chain.from_iterable(chosen), token_dtype(vocabulary), int(lengths.sum()))
    unknown: Counter[str] = Counter()
    with_unknown = (line for line, ids in zip(lines, sentences, strict=True) if vocabulary.unk_id in ids)
    for line in islice(with_unknown, _NUM_LOOKED_AT):
        text = line.decode()
        unknown.update(vocabulary.unknown_pieces(text))
        unknown.update(name for name in RESERVED if name in text)
    return EncodedSide(tokens, lengths, int((tokens == vocabulary.unk_id).sum()), unknown)


def encode_pairs(
    source: Path, target: Path, models: tuple[Path, Path], limits: Limits, num_processes: int
) -> Iterator[EncodedChunk]:
    """Encode two aligned files chunk by chunk; the result does not depend on the number of processes.

    Raises:
        UserError: a process was killed.
    """
    chunks = read_chunks(source, target, CHUNK_PAIRS)
    if num_processes == 1:
        encoder = PairEncoder(*models, limits)
        for chunk in chunks:
            yield encoder(*chunk)
        return
    processes = [_EncodingProcess(models, limits) for _ in range(num_processes)]
    try:
        yield from _encode_in_turn(chunks, processes)
    finally:
        for process in processes:
            process.end()


def _encode_in_turn(
    chunks: Iterator[tuple[list[bytes], list[bytes]]], processes: list["_EncodingProcess"]
) -> Iterator[EncodedChunk]:
    """Give each process one chunk at a time, so that neither end of a pipe writes while the other does too."""
    idle, busy = deque(processes), deque[_EncodingProcess]()
    for chunk in chunks:
        if not idle:
            first = busy.popleft()
            encoded = first.result()
            first.submit(*chunk)
            busy.append(first)
            yield encoded
        else:
            busy.append(idle.popleft())
            busy[-1].submit(*chunk)
    while busy:
        yield busy.popleft().result()


class _EncodingProcess:
    """A process and the only pipe to it: the death of either end is the end of file at the other.

    `concurrent.futures.ProcessPoolExecutor` shares one pipe among all its processes and holds both ends of it, so a
    process killed in the middle of a message makes it wait forever (seen with Python 3.11).
    """

    def __init__(self, models: tuple[Path, Path], limits: Limits) -> None:
        context = multiprocessing.get_context("spawn")  # not forked: the caller may have threads
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, models, limits), daemon=True)
        self._process.start()
        theirs.close()

    def submit(self, source_lines: list[bytes], target_lines: list[bytes]) -> None:
        with _killed_is_told():
            self._pipe.send((source_lines, target_lines))

    def result(self) -> EncodedChunk:
        with _killed_is_told():
            result: EncodedChunk | Exception = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


@contextmanager
def _killed_is_told() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:  # OSError: also the end of file in the middle of a message
        raise UserError(
            "a process that encodes the corpus was killed, perhaps for lack of memory; use fewer --processes"
        ) from error


def _serve(pipe: Connection, models: tuple[Path, Path], limits: Limits) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        encoder = PairEncoder(*models, limits)
        while True:
            chunk = pipe.recv()
            pipe.send(encoder(*chunk))
    except (EOFError, OSError):
        return  # the parent is gone
    except Exception as error:
        pipe.send(error)
