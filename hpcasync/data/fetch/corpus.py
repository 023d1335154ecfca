"""What is asked of a fetch, and what it gives."""

import filecmp
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from hpcasync.command_line import own_command
from hpcasync.data.fetch.mirror import Mirror
from hpcasync.errors import UserError, describe

Pair = tuple[Path, Path]
_PARTIAL_NAME = ".fetch-in-progress"


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch.

    Attributes:
        target: target language, of corpora that have several; None: the corpus's first.
        num_pairs, seed: of the embedded corpus.
    """

    target: str | None = None
    num_pairs: int = 20_000
    seed: int = 1
    mirror: Mirror = field(default_factory=Mirror)


@dataclass(frozen=True)
class FetchedCorpus:
    """The files of a corpus, source and target; `vocab_size` is what suits it."""

    source_language: str
    target_language: str
    train: Pair
    valid: Pair
    test: Pair
    vocab_size: int

    def prepare_command(self, directory: Path) -> str:
        """The command that prepares this corpus in `directory`."""
        words: list[str | Path] = ["data", "prepare", *self.train, "--out", directory]
        words += ["--valid", *self.valid, "--test", *self.test]
        words += ["--source-language", self.source_language, "--target-language", self.target_language]
        return own_command(*words, "--vocab-size", str(self.vocab_size))


Fetch = Callable[[Path, FetchOptions], FetchedCorpus]


@contextmanager
def in_place_when_complete(directory: Path) -> Iterator[Path]:
    """Give a directory to write files into, moved to `directory` when the context ends without an exception."""
    partial = directory / _PARTIAL_NAME
    is_new = not directory.exists()
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _remove_files(partial)
        yield partial
        written = sorted(partial.iterdir())
        for path in written:
            present = directory / path.name
            if present.exists() and not filecmp.cmp(path, present, shallow=False):
                raise UserError(f"{present} is there with other content; remove it or name another directory")
        for path in written:
            path.replace(directory / path.name)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or directory}: {describe(error, 'name another directory')}"
        ) from error
    finally:
        if partial.is_dir():
            _remove_files(partial)
            partial.rmdir()
        if is_new:
            with suppress(OSError):  # it holds the corpus, or was never made
                directory.rmdir()


def _remove_files(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
