"""The few shapes that batches are padded to where something is compiled for each of them."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpcasync.data.collate import Batch
from hpcasync.data.vocabulary import Vocabulary

_MOST_SHAPES = 20
_SHORTEST = 8
_MULTIPLE = 8  # of what the units of a GPU's products take


class Shapes:
    """Lengths, in steps of the same ratio, that both sides of a batch are padded to; a length has always as many rows.

    Args:
        batch_tokens: limit of rows times length.
        longest: sentence, end of sentence included; at most `batch_tokens`.

    Attributes:
        lengths: ascending, int64; at most 20.
    """

    def __init__(self, batch_tokens: int, longest: int) -> None:
        steps = np.geomspace(min(_SHORTEST, longest), longest, _MOST_SHAPES).round(6)
        multiples = np.ceil(steps / _MULTIPLE) * _MULTIPLE
        self.lengths: NDArray[np.int64] = np.unique(np.minimum(multiples, batch_tokens).astype(np.int64))
        self._batch_tokens = batch_tokens

    def round(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """What sentences of these lengths are padded to."""
        rounded: NDArray[np.int64] = self.lengths[np.searchsorted(self.lengths, lengths)]
        return rounded

    def positions(self, lengths: NDArray[np.int64]) -> int:
        """A side's positions in batches of these lengths, which are rounded, together."""
        return int((self._batch_tokens // lengths * lengths).sum())

    def pad(self, batch: Batch, source_vocabulary: Vocabulary, target_vocabulary: Vocabulary) -> Batch:
        """The batch in its shape; its loss is the same. Rows that are added have an end of sentence to read."""
        num_rows, target_length = batch.target_output.shape
        length = int(self.round(np.array([max(batch.source.shape[1], target_length)]))[0])
        shape = self._batch_tokens // length, length
        source = _pad(batch.source, shape, source_vocabulary.pad_id)
        source[num_rows:, 0] = source_vocabulary.eos_id  # attention to nothing would not be a number
        rows = batch.target_rows
        return replace(
            batch,
            source=source,
            target_input=_pad(batch.target_input, shape, target_vocabulary.pad_id),
            target_output=_pad(batch.target_output, shape, target_vocabulary.pad_id),
            target_rows=rows // target_length * length + rows % target_length,
        )


def _pad(values: Tensor, shape: tuple[int, int], pad_id: int) -> Tensor:
    padded = values.new_full(shape, pad_id)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded
