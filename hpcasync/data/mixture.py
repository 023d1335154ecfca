"""Several prepared corpora as one: each is seen so many times in a data epoch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcasync.data.corpus import ParallelTokens, PreparedCorpus, TokenFile
from hpcasync.data.manifest import SIDES, vocabulary_file
from hpcasync.errors import UserError

_CHUNK_PAIRS = 1024
_NUM_DIGITS = 16


class MixedFile:
    """One side of several corpora, dealt out evenly in chunks of neighbouring pairs; see `TokenFile`.

    Args:
        files: the same side of each corpus.
        repeats: how often each is there.
    """

    def __init__(self, files: Sequence[TokenFile], repeats: Sequence[int]) -> None:
        self._files = files
        self.max_length = max(file.max_length for file in files)
        owners, starts, sizes, places = (list[NDArray[Any]]() for _ in range(4))
        for number, (file, repeat) in enumerate(zip(files, repeats, strict=True)):
            first = np.arange(0, len(file), _CHUNK_PAIRS, dtype=np.int64)
            starts.append(np.tile(first, repeat))
            sizes.append(np.tile(np.minimum(first + _CHUNK_PAIRS, len(file)) - first, repeat))
            owners.append(np.full(len(starts[-1]), number))
            places.append((np.arange(len(starts[-1])) + 0.5) / len(starts[-1]))
        order = np.argsort(np.concatenate(places), kind="stable")
        self._owners, self._starts = np.concatenate(owners)[order], np.concatenate(starts)[order]
        self._bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes)[order])])
        self.num_tokens = sum(file.num_tokens * repeat for file, repeat in zip(files, repeats, strict=True))

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def lengths(self, start: int, stop: int) -> NDArray[np.int32]:
        first, last = np.searchsorted(self._bounds, [start, stop - 1], side="right") - 1
        parts = []
        for chunk in range(int(first), int(last) + 1):
            begin, end = max(start, int(self._bounds[chunk])), min(stop, int(self._bounds[chunk + 1]))
            shift = int(self._starts[chunk] - self._bounds[chunk])
            parts.append(self._files[int(self._owners[chunk])].lengths(begin + shift, end + shift))
        return np.concatenate(parts)

    def gather(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        chunks = np.searchsorted(self._bounds, indices, side="right") - 1
        owners = self._owners[chunks]
        within = indices - self._bounds[chunks] + self._starts[chunks]
        lengths = np.zeros(len(indices), np.int64)
        found = {}
        for number in np.unique(owners).tolist():
            found[number] = self._files[number].gather(within[owners == number])
            lengths[owners == number] = found[number][1]
        flat = np.empty(int(lengths.sum()), np.int64)
        is_of = np.repeat(owners, lengths)
        for number, (tokens, _) in found.items():
            flat[is_of == number] = tokens
        return flat, lengths


@dataclass(frozen=True)
class MixedTokens:
    """The training pairs of several corpora; see `ParallelTokens`."""

    source_file: MixedFile
    target_file: MixedFile

    def __len__(self) -> int:
        return len(self.source_file)


@dataclass(frozen=True)
class Mixture:
    """What a run is trained on.

    Attributes:
        corpora: the first has the vocabularies, and the text for validation.
        repeats: how often each is seen in a data epoch.
    """

    corpora: tuple[PreparedCorpus, ...]
    repeats: tuple[int, ...]

    def check_vocabularies(self) -> None:
        """Raises a UserError unless all corpora have the same."""
        first = self.corpora[0]
        for corpus in self.corpora[1:]:
            for name in map(vocabulary_file, SIDES):
                if corpus.manifest.files[name].sha256 != first.manifest.files[name].sha256:
                    raise UserError(
                        f"{corpus.path} has another {name} than {first.path}: prepare it with --source-model "
                        f"{first.path}/source.spm --target-model {first.path}/target.spm"
                    )

    @cached_property
    def tokens(self) -> ParallelTokens | MixedTokens:
        """The training pairs of all."""
        if len(self.corpora) == 1 and self.repeats == (1,):
            return self.corpora[0].train
        trains = [corpus.train for corpus in self.corpora]
        return MixedTokens(
            MixedFile([train.source_file for train in trains], self.repeats),
            MixedFile([train.target_file for train in trains], self.repeats),
        )

    @cached_property
    def digest(self) -> str:
        """Identifies the content, and how often it is seen; of one corpus, seen once, its own."""
        if len(self.corpora) == 1 and self.repeats == (1,):
            return self.corpora[0].digest
        parts = (f"{corpus.digest}*{repeat}" for corpus, repeat in zip(self.corpora, self.repeats, strict=True))
        return hashlib.sha256("+".join(parts).encode()).hexdigest()[:_NUM_DIGITS]

    def verify(self) -> None:
        """Compare all files with their digests; see `PreparedCorpus.verify`."""
        for corpus in self.corpora:
            corpus.verify()
