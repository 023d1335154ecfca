"""The embedded corpus, as files."""

from pathlib import Path

from hpcasync.data.embedded.generate import SOURCE_LANGUAGE, TARGET_LANGUAGES, write_corpus
from hpcasync.data.fetch.corpus import FetchedCorpus, FetchOptions, in_place_when_complete
from hpcasync.errors import UserError


def fetch_embedded(directory: Path, options: FetchOptions) -> FetchedCorpus:
    """Generate the embedded corpus; needs no network."""
    target = options.target or TARGET_LANGUAGES[0]
    if target not in TARGET_LANGUAGES:
        raise UserError(f"--target {target}: the embedded corpus has {' and '.join(TARGET_LANGUAGES)}")
    with in_place_when_complete(directory) as partial:
        write_corpus(partial, target, options.num_pairs, options.seed)
    train, valid, test = (
        (directory / f"{name}.{SOURCE_LANGUAGE}", directory / f"{name}.{target}") for name in ("train", "valid", "test")
    )
    return FetchedCorpus(SOURCE_LANGUAGE, target, train, valid, test, vocab_size=2000)
