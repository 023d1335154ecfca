"""Training of SentencePiece models on a sample of a corpus.

Source: Kudo & Richardson 2018, "SentencePiece"; unigram: Kudo 2018; BPE: Sennrich et al. 2016.
"""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from hpcasync.data.progress import say
from hpcasync.data.text import read_lines
from hpcasync.errors import UserError

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
# The trainer's result depends on the number of its threads: fixed, so that every machine makes the same model.
_TRAINER_THREADS = 16


Normalization = Literal["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"]
# Longer lines are left out of training: SentencePiece's own limit of 4,192 leaves out paragraphs without a word.
LONGEST_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class SubwordOptions:
    """How vocabularies are trained.

    Attributes:
        vocab_size: pieces, special tokens included.
        character_coverage: fraction of the characters that become pieces; the rest is unknown (or bytes).
        byte_fallback: spell what is unknown in bytes (256 of the pieces).
        sample_sentences: sentences used for training, spread evenly over the corpus.
        normalization: SentencePiece's rule for text before it is cut, by which m² becomes m2; identity: none.
    """

    vocab_size: int = 8000
    model_type: Literal["unigram", "bpe"] = "unigram"
    character_coverage: float = 0.99999
    byte_fallback: bool = False
    sample_sentences: int = 2_000_000
    normalization: Normalization = "nmt_nfkc"


def train_subwords(paths: list[Path], num_lines: int, options: SubwordOptions) -> bytes:
    """Train one model on a sample of all `paths` together, each of `num_lines` lines; returns the serialised model."""
    share = max(options.sample_sentences // len(paths), 1)
    left_out = _LeftOut()
    sentences = chain.from_iterable(left_out.without(_sample(path, num_lines, share)) for path in paths)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences,
            model_writer=model,
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            character_coverage=options.character_coverage,
            byte_fallback=options.byte_fallback,
            normalization_rule_name=options.normalization,
            max_sentence_length=LONGEST_LINE_BYTES,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            num_threads=_TRAINER_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(str(error), paths, options, left_out.text) from error
    if left_out.text:
        say(f"Warning: {left_out.text} left out of the training of the vocabulary.")
    return model.getvalue()


class _LeftOut:
    """Lines that SentencePiece cannot be trained on, which it would leave out itself, without a word."""

    def __init__(self) -> None:
        self._num_long = self._num_nul = 0

    def without(self, lines: Iterable[str]) -> Iterator[str]:
        """The other lines."""
        for line in lines:
            if len(line.encode()) > LONGEST_LINE_BYTES:
                self._num_long += 1
            elif "\0" in line:
                self._num_nul += 1
            else:
                yield line

    @property
    def text(self) -> str:
        """How many there were, and why; empty if there were none."""
        reasons = (
            (self._num_long, f"more than {LONGEST_LINE_BYTES:,} bytes (cut them into sentences)"),
            (self._num_nul, "a NUL character (remove it)"),
        )
        return " and ".join(f"{number:,} line(s) with {why}" for number, why in reasons if number)


def _sample(path: Path, num_lines: int, num_sentences: int) -> Iterator[str]:
    """One line, drawn at random, of each of `num_sentences` strata of equal size; all lines, if they are few.

    Both sides of a corpus give the same lines. Done here, since the trainer's own sampling differs from run to run.
    """
    lines = read_lines(path)
    if num_lines <= num_sentences:
        yield from (line.decode() for line in lines)
        return
    generator = np.random.default_rng(0)
    number = -1
    for stratum in range(num_sentences):
        start, stop = stratum * num_lines // num_sentences, (stratum + 1) * num_lines // num_sentences
        chosen = int(generator.integers(start, stop))
        for line in lines:
            number += 1
            if number == chosen:
                yield line.decode()
                break


def _explain(message: str, paths: list[Path], options: SubwordOptions, left_out: str) -> UserError:
    names = " and ".join(str(path) for path in paths)
    if found := re.search(r"value <= (\d+)", message):
        return UserError(
            f"--vocab-size {options.vocab_size} is too large for {names}: the text gives at most {found[1]} pieces"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"--vocab-size {options.vocab_size} is too small for {names}: the characters alone need {found[1]} pieces; "
            "raise it or lower --character-coverage"
        )
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return UserError(
            f"{names}: there is no sentence to train a vocabulary on{left_out and f': {left_out} left out'}"
        )
    return UserError(f"SentencePiece could not train a vocabulary on {names}: {message}")
