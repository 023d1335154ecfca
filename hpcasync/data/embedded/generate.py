"""Writing the embedded corpus."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

from hpcasync.data.embedded.sentences import sentence
from hpcasync.data.progress import progress

SOURCE_LANGUAGE = "en"
TARGET_LANGUAGES = ("de", "fr")
# A sentence belongs to a split by its own hash, so that no split repeats a sentence of another, whatever their sizes.
_BUCKETS = 20
_VALID_BUCKET, _TEST_BUCKET = 0, 1
_LARGEST_HELD_OUT = 1000


def held_out_size(num_pairs: int) -> int:
    """Pairs of validation and of test text that go with a number of training pairs."""
    return min(_LARGEST_HELD_OUT, max(num_pairs // 10, 20))


def write_corpus(directory: Path, target_language: str, num_pairs: int, seed: int) -> list[Path]:
    """Write train, valid and test files, English and `target_language` ("de" or "fr").

    The same arguments and the same versions of Babel and num2words give the same bytes. Validation and test text hold
    no sentence twice, and none of the training text.
    """
    sizes = {"train": num_pairs, "valid": held_out_size(num_pairs), "test": held_out_size(num_pairs)}
    paths = {name: [directory / f"{name}.{lang}" for lang in (SOURCE_LANGUAGE, target_language)] for name in sizes}
    with ExitStack() as stack, progress("Writing sentences", sum(sizes.values())) as advance:
        files = {
            name: [stack.enter_context(path.open("w", encoding="utf-8", newline="\n")) for path in pair]
            for name, pair in paths.items()
        }
        for name, source, target in _draw(target_language, sizes, seed):
            files[name][0].write(source + "\n")
            files[name][1].write(target + "\n")
            advance(1)
    return [path for pair in paths.values() for path in pair]


def _draw(target_language: str, sizes: dict[str, int], seed: int) -> Iterator[tuple[str, str, str]]:
    """Split, source and target of sentences until every split is full."""
    random = Random(seed)
    missing = dict(sizes)
    held_out: set[str] = set()
    while any(missing.values()):
        texts = sentence(random)
        source = texts[SOURCE_LANGUAGE]
        name = _split(source)
        if missing[name] == 0 or source in held_out:
            continue
        if name != "train":
            held_out.add(source)
        missing[name] -= 1
        yield name, source, texts[target_language]


def _split(source: str) -> str:
    bucket = int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "big") % _BUCKETS
    return {_VALID_BUCKET: "valid", _TEST_BUCKET: "test"}.get(bucket, "train")
