"""A prepared corpus: memory-mapped token files, vocabularies, untokenised validation and test text."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcasync.data.digests import file_digest
from hpcasync.data.manifest import (
    SIDES,
    SideRecord,
    held_out_file,
    read_manifest,
    train_file,
    vocabulary_file,
)
from hpcasync.data.text import read_sentences
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


class TokenFile:
    """The sentences of one side, one after the other; nothing is read before it is used.

    `tokens` holds the pieces of all sentences (uint16 or uint32), sentence i is `tokens[offsets[i]:offsets[i + 1]]`
    (offsets: uint64).
    """

    def __init__(self, tokens: Tokens, offsets: NDArray[np.uint64], max_length: int) -> None:
        self.tokens = tokens
        self.offsets = offsets
        self.max_length = max_length

    @classmethod
    def open(cls, directory: Path, side: str, record: SideRecord) -> "TokenFile":
        """Map the files of one side, "source" or "target"."""
        tokens = np.memmap(directory / train_file(side, "tokens"), dtype=record.dtype, mode="r")
        offsets = np.memmap(directory / train_file(side, "offsets"), dtype="<u8", mode="r")
        if offsets[0] != 0 or offsets[-1] != len(tokens):
            raise UserError(
                f"{directory / train_file(side, 'offsets')} does not fit {train_file(side, 'tokens')}; copy it again "
                "or prepare the corpus again"
            )
        return cls(np.asarray(tokens), np.asarray(offsets), record.max_length)  # plain views slice faster

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def lengths(self, start: int, stop: int) -> NDArray[np.int32]:
        """Lengths of the sentences [start, stop), in pieces."""
        return np.diff(self.offsets[start : stop + 1]).astype(np.int32)

    @property
    def num_tokens(self) -> int:
        """Pieces of all sentences."""
        return int(self.offsets[-1])

    def gather(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sentences at `indices`: ids end to end, and lengths, both int64."""
        starts = self.offsets[indices].astype(np.int64)
        lengths = self.offsets[indices + 1].astype(np.int64) - starts
        ends = np.cumsum(lengths)
        positions = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1])
        return self.tokens[positions].astype(np.int64), lengths


class ParallelTokens:
    """The training pairs as token ids, without beginning and end of sentence."""

    def __init__(self, source_file: TokenFile, target_file: TokenFile) -> None:
        assert len(source_file) == len(target_file)
        self.source_file = source_file
        self.target_file = target_file

    def __len__(self) -> int:
        return len(self.source_file)


class PreparedCorpus:
    """A directory made by `hpcasync data prepare`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self._check_sizes()

    @classmethod
    def open(cls, path: Path) -> "PreparedCorpus":
        """Open a directory and compare the size of every file with the manifest.

        Raises:
            UserError: the directory is missing, half-written, not a prepared corpus, or a file is missing or has
                another size.
        """
        return cls(Path(path))

    @cached_property
    def source_vocabulary(self) -> Vocabulary:
        """Vocabulary of the source language."""
        return self._vocabulary("source")

    @cached_property
    def target_vocabulary(self) -> Vocabulary:
        """Vocabulary of the target language; has the same ids as the source's where `manifest.joint`."""
        return self._vocabulary("target")

    @cached_property
    def train(self) -> ParallelTokens:
        """The training pairs."""
        source, target = (
            TokenFile.open(self.path, side, record)
            for side, record in (("source", self.manifest.source), ("target", self.manifest.target))
        )
        return ParallelTokens(source, target)

    @property
    def vocabulary_files(self) -> list[Path]:
        """The SentencePiece model of each side."""
        return [self.path / vocabulary_file(side) for side in SIDES]

    def has_split(self, name: str) -> bool:
        """Whether "train", "valid", "test", "test2" … is there."""
        return name == "train" or name in self.manifest.held_out

    def raw(self, name: str) -> tuple[list[str], list[str]]:
        """The untokenised sentences of "valid", "test", "test2" …: sources and targets."""
        if name not in self.manifest.held_out:
            option = "--valid SRC TGT" if name == "valid" else "--test SRC TGT, once for each test set,"
            raise UserError(
                f"{self.path} has no {name} text, but {', '.join(self.manifest.held_out) or 'none'}: prepare the "
                f"corpus with {option}"
            )
        self.verify([held_out_file(name, side) for side in SIDES])
        source, target = (read_sentences(self.path / held_out_file(name, side)) for side in SIDES)
        return source, target

    @property
    def digest(self) -> str:
        """Identifies the content: 16 hexadecimal digits of the manifest's SHA-256."""
        return self.manifest.digest

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compare files' digests with the manifest; of all (which reads the whole corpus) unless some are named."""
        recorded = self.manifest.files
        wrong = [
            name
            for name in (recorded if names is None else names)
            if file_digest(self.path / name) != recorded[name].sha256
        ]
        if wrong:
            raise UserError(f"{self.path}: the content of {', '.join(wrong)} has changed; prepare the corpus again")

    def _vocabulary(self, side: str) -> Vocabulary:
        name = vocabulary_file(side)
        if file_digest(self.path / name) != self.manifest.files[name].sha256:
            raise UserError(
                f"{self.path / name} is not the SentencePiece model that the corpus was prepared with; copy it again "
                "or prepare the corpus again"
            )
        return Vocabulary.load(self.path / name)

    def _check_sizes(self) -> None:
        for name, record in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise UserError(f"{self.path}: {name} is missing; copy it again or prepare the corpus again")
            if path.stat().st_size != record.size:
                raise UserError(
                    f"{path} has {path.stat().st_size} bytes but the manifest says {record.size}; "
                    "copy it again or prepare the corpus again"
                )
