"""Batches: coverage, determinism, token budget, padding, tensors worked out by hand."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcasync.data.batches import BatchPlan, collate, collate_sources
from hpcasync.data.corpus import ParallelTokens, TokenFile
from hpcasync.data.subwords import SubwordOptions, train_subwords
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    directory: Path = tmp_path_factory.mktemp("vocabulary")
    (directory / "text").write_text("a b c d e f\nf e d c b a\n")
    (directory / "model").write_bytes(train_subwords([directory / "text"], 2, SubwordOptions(vocab_size=12)))
    return Vocabulary.load(directory / "model")


def token_file(sentences: list[list[int]]) -> TokenFile:
    lengths = [len(sentence) for sentence in sentences]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<u8")
    return TokenFile(np.array(list(chain.from_iterable(sentences)), "<u2"), offsets, max(lengths))


def corpus(lengths: list[tuple[int, int]]) -> ParallelTokens:
    """Pairs of these lengths; the first id of a sentence tells its position."""
    sides = [[[4 + i % 60_000] * pair[side] for i, pair in enumerate(lengths)] for side in (0, 1)]
    return ParallelTokens(token_file(sides[0]), token_file(sides[1]))


def random_corpus(num_pairs: int, seed: int = 0) -> ParallelTokens:
    generator = np.random.default_rng(seed)
    targets = np.clip(generator.gamma(6, 2.5, num_pairs), 1, 60).astype(int)
    sources = np.clip(targets + generator.normal(0, 3, num_pairs), 1, 60).astype(int)
    return corpus(list(zip(sources.tolist(), targets.tolist(), strict=True)))


def plan(tokens: ParallelTokens, vocabulary: Vocabulary, **options: Any) -> BatchPlan:
    return BatchPlan(tokens, vocabulary, vocabulary, **{"batch_tokens": 256, "seed": 1, **options})


def epoch_indices(batches: BatchPlan, data_epoch: int) -> list[list[int]]:
    first = data_epoch * batches.num_batches()
    return [batches.indices(first + index).tolist() for index in range(batches.num_batches())]


lengths_strategy = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=120)


@settings(max_examples=60)
@given(
    lengths=lengths_strategy, batch_tokens=st.integers(31, 200), seed=st.integers(0, 2**40), block=st.integers(1, 130)
)
def test_each_epoch_covers_each_pair_once_within_the_budget(
    vocabulary: Vocabulary, lengths: list[tuple[int, int]], batch_tokens: int, seed: int, block: int
) -> None:
    tokens = corpus(lengths)
    batches = plan(tokens, vocabulary, batch_tokens=batch_tokens, seed=seed, block_pairs=block)
    for data_epoch in (0, 1, 7):
        indices = epoch_indices(batches, data_epoch)
        assert sorted(chain.from_iterable(indices)) == list(range(len(lengths)))
        for rows in indices:
            longest = max(max(lengths[row]) for row in rows) + 1
            assert 0 < len(rows) * longest <= batch_tokens


@settings(max_examples=30)
@given(tickets=st.lists(st.integers(0, 400), min_size=1, max_size=12), block=st.sampled_from([64, 100, 1000]))
def test_batches_do_not_depend_on_the_order_of_calls(vocabulary: Vocabulary, tickets: list[int], block: int) -> None:
    tokens = random_corpus(300)
    reference = plan(tokens, vocabulary, block_pairs=block)
    expected = [reference.indices(ticket).tolist() for ticket in range(401)]
    other = plan(tokens, vocabulary, block_pairs=block)  # as on another rank, which takes other tickets
    for ticket in tickets:
        assert other.indices(ticket).tolist() == expected[ticket]
        assert other.locate(ticket) == reference.locate(ticket)


@pytest.mark.parametrize("block", [70, 1 << 20])
def test_tickets_count_over_epochs(vocabulary: Vocabulary, block: int) -> None:
    batches = plan(random_corpus(300), vocabulary, block_pairs=block)
    num = batches.num_batches()
    assert num > 1
    assert [batches.locate(ticket) for ticket in (0, num - 1, num, 5 * num + 2)] == [
        (0, 0), (0, num - 1), (1, 0), (5, 2)]  # fmt: skip
    fresh = plan(random_corpus(300), vocabulary, block_pairs=block)
    assert fresh.locate(2 * num + 1) == (2, 1)


def test_epochs_and_seeds_differ(vocabulary: Vocabulary) -> None:
    tokens = random_corpus(20_000)
    first, second = plan(tokens, vocabulary), plan(tokens, vocabulary, seed=2)
    as_sets = [{frozenset(rows) for rows in epoch_indices(*which)} for which in ((first, 0), (first, 1), (second, 0))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(as_sets[one] & as_sets[other]) < 0.1 * len(as_sets[one])
    order = [[len(rows) for rows in epoch_indices(first, epoch)] for epoch in (0, 1)]
    assert order[0] != order[1]
    assert sorted(order[0]) == sorted(order[1])
    assert order[0] != sorted(order[0])  # lengths are mixed over an epoch


def test_same_seed_gives_the_same_batches(vocabulary: Vocabulary) -> None:
    one, other = (epoch_indices(plan(random_corpus(500), vocabulary, block_pairs=128), 3) for _ in range(2))
    assert one == other


@settings(max_examples=60)
@given(lengths=lengths_strategy, batch_tokens=st.integers(31, 400), block=st.integers(1, 130))
def test_few_shapes_hold_each_pair_once_within_the_budget(
    vocabulary: Vocabulary, lengths: list[tuple[int, int]], batch_tokens: int, block: int
) -> None:
    tokens = corpus(lengths)
    rounded = plan(tokens, vocabulary, rounded=True, batch_tokens=batch_tokens, block_pairs=block)
    assert sorted(chain.from_iterable(epoch_indices(rounded, 1))) == list(range(len(lengths)))
    shapes = set()
    for ticket in range(rounded.num_batches()):
        batch = rounded.batch(ticket)
        assert batch.source.shape == batch.target_input.shape == batch.target_output.shape
        assert batch.source.numel() <= batch_tokens
        assert (batch.source != vocabulary.pad_id).any(1).all(), "attention to nothing is no number"
        shapes.add(batch.source.shape)
        tokens_there = batch.target_output != vocabulary.pad_id
        assert torch.equal(batch.target_rows, tokens_there.view(-1).nonzero().view(-1))
        for row, index in enumerate(batch.indices.tolist()):
            for side, padded in ((0, batch.source), (1, batch.target_output)):
                assert (padded[row] != vocabulary.pad_id).sum() == lengths[index][side] + 1
    assert len(shapes) <= 20


def test_an_epoch_of_many_lengths_has_at_most_twenty_shapes(vocabulary: Vocabulary) -> None:
    generator = np.random.default_rng(1)
    pairs = np.clip(generator.gamma(2, 40, (6000, 2)), 1, 500).astype(int)
    batches = plan(corpus([tuple(pair) for pair in pairs.tolist()]), vocabulary, batch_tokens=4096, rounded=True)
    shapes = {tuple(batches.batch(ticket).source.shape) for ticket in range(batches.num_batches())}
    assert 10 < len(shapes) <= 20 and all(length % 8 == 0 for _, length in shapes)


@pytest.mark.parametrize("rounded", [False, True])
def test_padding_is_what_the_tensors_hold(vocabulary: Vocabulary, rounded: bool) -> None:
    batches = plan(random_corpus(3000), vocabulary, batch_tokens=1024, rounded=rounded)
    all_batches = [batches.batch(ticket) for ticket in range(batches.num_batches())]
    positions = [sum(b.source.numel() for b in all_batches), sum(b.target_output.numel() for b in all_batches)]
    tokens = [sum(b.num_source_tokens for b in all_batches), sum(b.num_target_tokens for b in all_batches)]
    padding = batches.padding()
    assert padding.source == pytest.approx(1 - tokens[0] / positions[0])
    assert padding.target == pytest.approx(1 - tokens[1] / positions[1])
    assert padding.both == pytest.approx(1 - sum(tokens) / sum(positions))
    assert padding.both < (0.35 if rounded else 0.2)


def test_batch_holds_the_pairs_it_names(vocabulary: Vocabulary) -> None:
    tokens = random_corpus(200)
    batches = plan(tokens, vocabulary)
    for ticket in range(batches.num_batches() + 2):
        batch = batches.batch(ticket)
        expected = collate(
            [tokens.source_file[i].tolist() for i in batch.indices.tolist()],
            [tokens.target_file[i].tolist() for i in batch.indices.tolist()],
            vocabulary, vocabulary)  # fmt: skip
        for name in ("source", "target_input", "target_output", "num_source_tokens", "num_target_tokens"):
            got, want = getattr(batch, name), getattr(expected, name)
            assert torch.equal(got, want) if isinstance(got, torch.Tensor) else got == want


def test_collate_by_hand(vocabulary: Vocabulary) -> None:
    pad, bos, eos = vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id
    batch = collate([[5, 6], [], [7, 8, 9]], [[10], [11, 11], []], vocabulary, vocabulary).to("cpu")
    assert batch.source.tolist() == [[5, 6, eos, pad], [eos, pad, pad, pad], [7, 8, 9, eos]]
    assert batch.target_input.tolist() == [[bos, 10, pad], [bos, 11, 11], [bos, pad, pad]]
    assert batch.target_output.tolist() == [[10, eos, pad], [11, 11, eos], [eos, pad, pad]]
    assert (batch.num_source_tokens, batch.num_target_tokens) == (8, 6)
    assert batch.source.dtype == batch.target_input.dtype == batch.target_output.dtype == torch.int64
    assert batch.indices.tolist() == [0, 1, 2]
    assert collate_sources([[5], []], vocabulary).tolist() == [[5, eos], [eos, pad]]


def test_a_sentence_longer_than_the_budget_is_refused(vocabulary: Vocabulary) -> None:
    tokens = corpus([(3, 4), (31, 2)])
    plan(tokens, vocabulary, batch_tokens=32)
    with pytest.raises(UserError, match=r"batch_tokens=31 is less than the longest sentence .* 32 .*--max-length 30"):
        plan(tokens, vocabulary, batch_tokens=31)


def test_lengths_leave_out_specials() -> None:
    tokens = corpus([(3, 4), (1, 2)])
    assert tokens.source_file.lengths(0, len(tokens)).tolist() == [3, 1]
    assert tokens.target_file.lengths(0, len(tokens)).tolist() == [4, 2]
    assert tokens.target_file.lengths(0, len(tokens)).dtype == np.int32


def test_blocks_are_planned_when_reached(vocabulary: Vocabulary) -> None:
    tokens = random_corpus(4000)
    batches = plan(tokens, vocabulary, block_pairs=100)
    batches.batch(0)
    assert len(batches._layouts) == 1
    for ticket in range(batches.num_batches() * 2):
        batches.indices(ticket)
    assert len(batches._layouts) <= 2
