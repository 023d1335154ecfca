"""Text to prepare corpora of, and what lies in their directories."""

import itertools
import random
from pathlib import Path
from typing import Any

from hpcasync.data.prepare import PrepareOptions
from hpcasync.data.subwords import SubwordOptions

NUM_PAIRS = 300
_NOUNS = {"house": "haus", "river": "fluss", "table": "tisch", "street": "straße", "dog": "hund", "night": "nacht",
          "garden": "garten", "window": "fenster", "market": "markt", "green": "grün", "old": "alt", "sees": "sieht",
          }  # fmt: skip
_WORDS = _NOUNS | {one + two: _NOUNS[one] + _NOUNS[two] for one, two in itertools.permutations(_NOUNS, 2)}


def sentence_pairs(num_pairs: int = NUM_PAIRS, seed: int = 0) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    chosen = [generator.choices(list(_WORDS), k=generator.randint(4, 9)) for _ in range(num_pairs)]
    return [(" ".join(words), " ".join(_WORDS[word] for word in reversed(words))) for words in chosen]


def write(stem: Path, pairs: list[tuple[str, str]]) -> tuple[Path, Path]:
    paths = stem.with_suffix(".en"), stem.with_suffix(".de")
    for side, path in enumerate(paths):
        path.write_text("".join(pair[side] + "\n" for pair in pairs))
    return paths


def options(vocab_size: int = 60, **changes: Any) -> PrepareOptions:
    return PrepareOptions(subwords=SubwordOptions(vocab_size=vocab_size), **changes)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
