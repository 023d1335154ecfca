"""Sentences of token ids as padded tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcasync.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class Batch:
    """B pairs, padded on the right; all tensors int64.

    Attributes:
        source: [B, S], sentence and end of sentence.
        target_input: [B, T], beginning of sentence and sentence.
        target_output: [B, T], sentence and end of sentence: `target_input` moved by one.
        target_rows: [num_target_tokens], ascending flat positions of the tokens of `target_output`: on a GPU they could
            be found only by waiting for it.
        num_source_tokens: of `source`, without padding.
        num_target_tokens: of `target_output`, without padding: the unit of loss and throughput.
        indices: [B], positions of the pairs in the corpus.
    """

    source: Tensor
    target_input: Tensor
    target_output: Tensor
    target_rows: Tensor
    num_source_tokens: int
    num_target_tokens: int
    indices: NDArray[np.int64]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on another device; to a GPU they go beside what it computes."""
        return replace(
            self,
            source=_move(self.source, device),
            target_input=_move(self.target_input, device),
            target_output=_move(self.target_output, device),
            target_rows=_move(self.target_rows, device),
        )


@dataclass(frozen=True)
class Ragged:
    """Sentences of unequal length: ids end to end and lengths, both int64."""

    flat: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]]) -> "Ragged":
        """From sequences of ids."""
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        return cls(np.fromiter(chain.from_iterable(sentences), np.int64, int(lengths.sum())), lengths)


def collate(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    source_vocabulary: Vocabulary,
    target_vocabulary: Vocabulary,
) -> Batch:
    """A batch of pairs given as ids without beginning and end of sentence; `indices` count from 0."""
    assert len(sources) == len(targets) > 0
    return assemble(
        Ragged.of(sources), Ragged.of(targets), source_vocabulary, target_vocabulary, np.arange(len(sources))
    )


def collate_sources(sources: Sequence[Sequence[int]], vocabulary: Vocabulary) -> Tensor:
    """Sources alone, as `Batch.source`: [B, S]."""
    return _ended(Ragged.of(sources), vocabulary)


def assemble(
    source: Ragged,
    target: Ragged,
    source_vocabulary: Vocabulary,
    target_vocabulary: Vocabulary,
    indices: NDArray[np.int64],
) -> Batch:
    """A batch of ragged sentences."""
    num_rows = len(indices)
    return Batch(
        source=_ended(source, source_vocabulary),
        target_input=_begun(target, target_vocabulary),
        target_output=_ended(target, target_vocabulary),
        target_rows=_rows(target),
        num_source_tokens=len(source.flat) + num_rows,
        num_target_tokens=len(target.flat) + num_rows,
        indices=indices,
    )


def _ended(sentences: Ragged, vocabulary: Vocabulary) -> Tensor:
    """Sentence, end of sentence, padding."""
    padded, inside = _empty(sentences, vocabulary)
    padded[:, :-1][inside] = sentences.flat
    padded[np.arange(len(padded)), sentences.lengths] = vocabulary.eos_id
    return torch.from_numpy(padded)


def _rows(sentences: Ragged) -> Tensor:
    """Flat positions of sentences and ends of sentences in [B, longest + 1]."""
    longest = int(sentences.lengths.max())
    return torch.from_numpy(np.flatnonzero(np.arange(longest + 1) <= sentences.lengths[:, None]))


def _move(values: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    # From memory that could be paged out the copy would wait for all that the GPU has to do before.
    return values.pin_memory().to(device, non_blocking=True)


def _begun(sentences: Ragged, vocabulary: Vocabulary) -> Tensor:
    """Beginning of sentence, sentence, padding."""
    padded, inside = _empty(sentences, vocabulary)
    padded[:, 0] = vocabulary.bos_id
    padded[:, 1:][inside] = sentences.flat
    return torch.from_numpy(padded)


def _empty(sentences: Ragged, vocabulary: Vocabulary) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Padding [B, longest + 1], and which of [B, longest] the sentences cover."""
    longest = int(sentences.lengths.max())
    padded = np.full((len(sentences.lengths), longest + 1), vocabulary.pad_id, np.int64)
    return padded, np.arange(longest) < sentences.lengths[:, None]
