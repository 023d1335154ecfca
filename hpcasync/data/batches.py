"""Batches of training pairs: a pure function of corpus, token budget and seed, the same on every rank.

A batch is named by its ticket. Tickets count from 0 over all data epochs, so that one shared counter tells every worker
what to do next.

Within blocks of at most 2**20 neighbouring pairs, pairs are sorted by length and cut into batches. Which lengths come
together is drawn once for a block; which of the pairs of those lengths, and the order of batches and of blocks, are
drawn anew for each data epoch. So every data epoch has the same number of batches, and the data epoch of a ticket is
known without planning those before it. A block is planned when it is reached.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hpcasync.data.collate import Batch, Ragged, assemble, collate, collate_sources
from hpcasync.data.corpus import ParallelTokens
from hpcasync.data.mixture import MixedTokens
from hpcasync.data.sampling import SubwordSampling
from hpcasync.data.shapes import Shapes
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError

__all__ = ["Batch", "BatchPlan", "Padding", "collate", "collate_sources"]

BLOCK_PAIRS = 1 << 20
# Half-width of the uniform noise added to source lengths before sorting: without it a batch would hold pairs of the
# same lengths in every data epoch.
_NOISE_TOKENS = 0.75
_BLOCKS_KEPT = 2
_PADDING_BLOCKS = 8
# First word of the seed of each kind of random draw.
_DRAW_LAYOUT, _DRAW_BLOCKS, _DRAW_PAIRS, _DRAW_PIECES = 1, 2, 3, 4

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Padding:
    """Fractions of the positions of padded batches that hold padding."""

    source: float
    target: float
    both: float


@dataclass(frozen=True)
class _Layout:
    """How a block is cut, in every data epoch.

    A *place* is a row of a batch; places are numbered batch after batch.

    Attributes:
        classes: for each pair of the block, a number that says its two lengths, int64.
        places: the places in the order of the classes of the pairs they take, int64.
        bounds: batch b has the places [bounds[b], bounds[b + 1]), int64.
        positions, tokens: of all batches, padded positions and tokens, (source, target).
    """

    classes: NDArray[np.int64]
    places: NDArray[np.int64]
    bounds: NDArray[np.int64]
    positions: tuple[int, int]
    tokens: tuple[int, int]


@dataclass(frozen=True)
class _EpochBlock:
    """A block in one data epoch: the pair in each place, and the order of the batches; int64."""

    pairs: NDArray[np.int64]
    batch_order: NDArray[np.int64]


class BatchPlan:
    """The batches of a corpus; not to be shared between threads.

    Args:
        tokens: the training pairs.
        batch_tokens: limit of a batch: rows times the longest sentence of either side, end of sentence included.
        seed: of the shuffling.
        block_pairs: pairs that are sorted and shuffled together.
        sampling: by which sentences are cut into other pieces each time; None: never. Batches are made by the lengths
            that the corpus has.
        rounded: pad batches to one of at most 20 shapes (`data.shapes`); other pairs come together then. Not with
            `sampling`, which lengthens sentences.

    Raises:
        UserError: the longest sentence exceeds `batch_tokens`.
    """

    def __init__(
        self,
        tokens: ParallelTokens | MixedTokens,
        source_vocabulary: Vocabulary,
        target_vocabulary: Vocabulary,
        *,
        batch_tokens: int,
        seed: int,
        block_pairs: int = BLOCK_PAIRS,
        sampling: SubwordSampling | None = None,
        rounded: bool = False,
    ) -> None:
        longest = 1 + max(tokens.source_file.max_length, tokens.target_file.max_length)
        if longest > batch_tokens:
            raise UserError(
                f"data.batch_tokens={batch_tokens} is less than the longest sentence of the corpus, {longest} with its "
                f"end; raise it, or prepare the corpus with --max-length {batch_tokens - 1}"
            )
        self._tokens = tokens
        self._vocabularies = source_vocabulary, target_vocabulary
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._block_pairs = block_pairs
        self._sampling = sampling
        assert not (rounded and sampling)
        self._shapes = Shapes(batch_tokens, longest) if rounded else None
        self._num_blocks = -(-len(tokens) // block_pairs)
        self._counts: dict[int, int] = {}
        self._layouts: OrderedDict[int, _Layout] = OrderedDict()
        self._epoch_blocks: OrderedDict[tuple[int, int], _EpochBlock] = OrderedDict()

    def num_batches(self) -> int:
        """Number of batches of a data epoch: the same for each. Reads all lengths, the first time."""
        return sum(self._count(block) for block in range(self._num_blocks))

    def locate(self, ticket: int) -> tuple[int, int]:
        """Data epoch of a ticket, and its index there."""
        assert ticket >= 0
        remaining = ticket
        for block in self._block_order(0).tolist():
            remaining -= self._count(block)
            if remaining < 0:
                return 0, ticket
        return divmod(ticket, self.num_batches())

    def batch(self, ticket: int) -> Batch:
        """The batch of a ticket, on the CPU."""
        indices = self.indices(ticket)
        source = Ragged(*self._tokens.source_file.gather(indices))
        target = Ragged(*self._tokens.target_file.gather(indices))
        if self._sampling is not None:
            seeds = np.random.SeedSequence([_DRAW_PIECES, self._seed, ticket]).spawn(2)
            source = self._sampling.resegment(source, self._vocabularies[0], seeds[0])
            target = self._sampling.resegment(target, self._vocabularies[1], seeds[1])
        batch = assemble(source, target, *self._vocabularies, indices)
        return batch if self._shapes is None else self._shapes.pad(batch, *self._vocabularies)

    def num_target_tokens(self, ticket: int) -> int:
        """Target tokens of a batch, ends of sentences included."""
        indices = self.indices(ticket)
        return int(self._tokens.target_file.gather(indices)[1].sum()) + len(indices)

    def indices(self, ticket: int) -> NDArray[np.int64]:
        """Positions in the corpus of the pairs of a batch, int64."""
        data_epoch, index = self.locate(ticket)
        for block in self._block_order(data_epoch).tolist():
            if index < self._count(block):
                break
            index -= self._count(block)
        planned = self._epoch_block(data_epoch, block)
        bounds = self._layout(block).bounds
        chosen = planned.batch_order[index]
        return planned.pairs[bounds[chosen] : bounds[chosen + 1]]

    def padding(self) -> Padding:
        """Padding of each side, measured on at most the first 8 blocks; the same in every data epoch."""
        layouts = [self._layout(block) for block in range(min(self._num_blocks, _PADDING_BLOCKS))]
        positions = np.sum([layout.positions for layout in layouts], axis=0)
        tokens = np.sum([layout.tokens for layout in layouts], axis=0)
        source, target = (1 - tokens / positions).tolist()
        return Padding(source, target, float(1 - tokens.sum() / positions.sum()))

    def _block_order(self, data_epoch: int) -> NDArray[np.int64]:
        if self._num_blocks == 1:
            return np.zeros(1, np.int64)
        return np.random.default_rng([_DRAW_BLOCKS, self._seed, data_epoch]).permutation(self._num_blocks)

    def _count(self, block: int) -> int:
        if block not in self._counts:
            self._layout(block)
        return self._counts[block]

    def _layout(self, block: int) -> _Layout:
        if block not in self._layouts:
            start = block * self._block_pairs
            stop = min(start + self._block_pairs, len(self._tokens))
            generator = np.random.default_rng([_DRAW_LAYOUT, self._seed, block])
            source_lengths = self._tokens.source_file.lengths(start, stop).astype(np.int64) + 1
            target_lengths = self._tokens.target_file.lengths(start, stop).astype(np.int64) + 1
            layout = _lay_out(source_lengths, target_lengths, self._batch_tokens, generator, self._shapes)
            self._counts[block] = len(layout.bounds) - 1
            _keep(self._layouts, block, layout)
        return self._layouts[block]

    def _epoch_block(self, data_epoch: int, block: int) -> _EpochBlock:
        key = data_epoch, block
        if key not in self._epoch_blocks:
            layout = self._layout(block)
            generator = np.random.default_rng([_DRAW_PAIRS, self._seed, data_epoch, block])
            shuffled = generator.permutation(len(layout.classes))
            pairs = np.empty_like(shuffled)
            pairs[layout.places] = shuffled[np.argsort(layout.classes[shuffled], kind="stable")]
            pairs += block * self._block_pairs
            _keep(self._epoch_blocks, key, _EpochBlock(pairs, generator.permutation(len(layout.bounds) - 1)))
        return self._epoch_blocks[key]


def _lay_out(
    source_lengths: NDArray[np.int64],
    target_lengths: NDArray[np.int64],
    batch_tokens: int,
    generator: np.random.Generator,
    shapes: Shapes | None,
) -> _Layout:
    noise = generator.uniform(-_NOISE_TOKENS, _NOISE_TOKENS, len(source_lengths))
    longer = np.maximum(source_lengths, target_lengths)
    keys = [source_lengths + noise, target_lengths]
    if shapes is not None:
        longer = shapes.round(longer)
        keys.append(longer)
    order = np.lexsort(keys)
    classes = target_lengths * (int(source_lengths.max()) + 1) + source_lengths
    source_sorted, target_sorted = source_lengths[order], target_lengths[order]
    longer_sorted = longer[order]
    bounds = _cut(longer_sorted, batch_tokens)
    if shapes is None:
        rows, sides = np.diff(bounds), (source_sorted, target_sorted)
        positions = [int((rows * np.maximum.reduceat(side, bounds[:-1])).sum()) for side in sides]
    else:
        positions = [shapes.positions(np.maximum.reduceat(longer_sorted, bounds[:-1]))] * 2
    return _Layout(
        classes=classes,
        places=np.argsort(classes[order], kind="stable"),
        bounds=bounds,
        positions=(positions[0], positions[1]),
        tokens=(int(source_lengths.sum()), int(target_lengths.sum())),
    )


def _cut(lengths: NDArray[np.int64], batch_tokens: int) -> NDArray[np.int64]:
    """Bounds of runs, as long as can be, whose number of rows times largest length is at most `batch_tokens`."""
    bounds = [0]
    while (start := bounds[-1]) < len(lengths):
        window = lengths[start : start + batch_tokens // int(lengths[start])]
        sizes = np.maximum.accumulate(window) * np.arange(1, len(window) + 1)
        bounds.append(start + int(np.searchsorted(sizes, batch_tokens, side="right")))
    return np.array(bounds, np.int64)


def _keep(cache: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    cache[key] = value
    if len(cache) > _BLOCKS_KEPT:
        cache.popitem(last=False)
