"""From two text files to a prepared corpus."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
import sentencepiece

from hpcasync.data import doubts
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.encode import EncodedSide, Limits, encode_pairs, token_dtype
from hpcasync.data.manifest import (
    MANIFEST_NAME,
    SIDES,
    FileRecord,
    Manifest,
    Options,
    PairCounts,
    SideRecord,
    held_out_file,
    train_file,
    vocabulary_file,
)
from hpcasync.data.output import HashedFile, complete_directory
from hpcasync.data.progress import progress, say
from hpcasync.data.subwords import SubwordOptions, train_subwords
from hpcasync.data.text import check_aligned, read_lines
from hpcasync.data.vocabulary import Vocabulary
from hpcasync.errors import UserError

Pair = tuple[Path, Path]
_NUM_LOOKED_AT = 1000  # lines


@dataclass(frozen=True)
class PrepareOptions:
    """What `prepare` is to do.

    Attributes:
        held_out: untokenised text to keep, under "valid", "test", "test2" …
        joint: one vocabulary for both sides; None: joint, unless two given models differ.
        source_model, target_model: SentencePiece models to use instead of training them.
    """

    subwords: SubwordOptions = field(default_factory=SubwordOptions)
    limits: Limits = field(default_factory=Limits)
    held_out: dict[str, Pair] = field(default_factory=dict)
    joint: bool | None = None
    source_model: Path | None = None
    target_model: Path | None = None
    source_language: str | None = None
    target_language: str | None = None
    num_processes: int = 1
    overwrite: bool = False


def prepare(source: Path, target: Path, directory: Path, options: PrepareOptions) -> Manifest:
    """Write a prepared corpus: the same files and options give the same bytes, whatever the number of processes.

    Raises:
        UserError: the files are missing, misaligned, empty or no UTF-8; the vocabulary does not fit the text; no pair
            passes the filters; or `directory` cannot be written or holds something else.
    """
    with complete_directory(directory, overwrite=options.overwrite) as partial:
        say(f"Checking {source} and {target} ...")
        num_pairs = check_aligned(source, target)
        num_held_out = {name: check_aligned(*pair) for name, pair in options.held_out.items()}
        _doubt(doubts.of_overlap((source, target), options.held_out))
        files: dict[str, FileRecord] = {}
        joint = _write_vocabularies(partial, (source, target), num_pairs, options, files)
        changed: dict[str, int] = {}
        for name, pair in options.held_out.items():
            changed |= _copy_held_out(partial, name, pair, files)
        counts, source_record, target_record = _write_tokens(partial, (source, target), num_pairs, options, files)
        manifest = Manifest(
            source_language=options.source_language,
            target_language=options.target_language,
            joint=joint,
            pairs=counts,
            source=source_record,
            target=target_record,
            held_out=num_held_out,
            changed={name: number for name, number in changed.items() if number},
            options=_recorded_options(options),
            sentencepiece_version=sentencepiece.__version__,
            files=dict(sorted(files.items())),
        )
        with HashedFile(partial / MANIFEST_NAME) as output:
            output.write(manifest.to_bytes())
        _read_back(partial)
    first = (line.decode() for line in islice(read_lines(target), _NUM_LOOKED_AT))
    _doubt(doubts.of_blanks(options.target_language, first))
    return manifest


def _read_back(directory: Path) -> None:
    """Open what was written as training will, and compare every file with its digest."""
    corpus = PreparedCorpus.open(directory)
    corpus.verify()
    assert len(corpus.train) == corpus.manifest.pairs.kept
    assert len(corpus.source_vocabulary) == corpus.manifest.source.num_pieces
    assert len(corpus.target_vocabulary) == corpus.manifest.target.num_pieces


def _write_vocabularies(
    partial: Path, pair: Pair, num_pairs: int, options: PrepareOptions, files: dict[str, FileRecord]
) -> bool:
    """Write source.spm and target.spm; returns whether they are one vocabulary."""
    given = [None if path is None else _read_model(path) for path in (options.source_model, options.target_model)]
    joint = options.joint if options.joint is not None else given[0] == given[1]
    if joint and given[0] != given[1]:
        raise UserError(
            "--joint needs one vocabulary: give the same file as --source-model and --target-model, or neither"
        )
    if None in given:
        num_sentences = min(2 * num_pairs, options.subwords.sample_sentences)
        say(f"Training {'one vocabulary' if joint else 'vocabularies'} on up to {num_sentences:,} sentences ...")
    if joint:
        models = [given[0] or train_subwords(list(pair), num_pairs, options.subwords)] * 2
    else:
        models = [
            model or train_subwords([path], num_pairs, options.subwords)
            for model, path in zip(given, pair, strict=True)
        ]
    for side, model in zip(SIDES, models, strict=True):
        with HashedFile(partial / vocabulary_file(side)) as output:
            output.write(model)
        files[vocabulary_file(side)] = output.record
    return models[0] == models[1]


def _read_model(path: Path) -> bytes:
    Vocabulary.load(path)
    return path.read_bytes()


def _doubt(lines: Iterable[str]) -> None:
    for line in lines:
        say(f"Warning: {line}")


def _copy_held_out(partial: Path, name: str, pair: Pair, files: dict[str, FileRecord]) -> dict[str, int]:
    """Write both sides of held-out text; returns how many lines of each normalisation changes."""
    changed: Counter[str] = Counter()
    for side, path in zip(SIDES, pair, strict=True):
        vocabulary, file = Vocabulary.load(partial / vocabulary_file(side)), held_out_file(name, side)
        with HashedFile(partial / file) as output:
            for line in read_lines(path):
                output.write(line + b"\n")
                changed[file] += vocabulary.is_changed(line.decode())
        files[file] = output.record
    return changed


class _TokenWriter:
    """Writes the two files of one side; to be used as a context."""

    def __init__(self, directory: Path, side: str, vocabulary: Vocabulary) -> None:
        self._names = train_file(side, "tokens"), train_file(side, "offsets")
        self._tokens, self._offsets = (HashedFile(directory / name) for name in self._names)
        self._offsets.write(np.zeros(1, "<u8").tobytes())
        self._vocabulary = vocabulary
        self._num_tokens = self._num_unknown = self._max_length = 0
        self.unknown: Counter[str] = Counter()

    def __enter__(self) -> "_TokenWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._tokens.__exit__(kind, error, tb)
        self._offsets.__exit__(kind, error, tb)

    def append(self, side: EncodedSide) -> None:
        """Add the sentences of a chunk."""
        if len(side.lengths) == 0:
            return
        ends = self._num_tokens + np.cumsum(side.lengths)
        self._tokens.write(side.tokens.tobytes())
        self._offsets.write(ends.astype("<u8").tobytes())
        self._num_tokens = int(ends[-1])
        self._num_unknown += side.num_unknown
        self.unknown += side.unknown
        self._max_length = max(self._max_length, int(side.lengths.max()))

    def describe(self, files: dict[str, FileRecord]) -> SideRecord:
        """Describe the side, and add its files to `files`."""
        files[self._names[0]] = self._tokens.record
        files[self._names[1]] = self._offsets.record
        return SideRecord(
            num_pieces=len(self._vocabulary),
            num_tokens=self._num_tokens,
            num_unknown=self._num_unknown,
            max_length=self._max_length,
            dtype=token_dtype(self._vocabulary),
        )


def _write_tokens(
    partial: Path, pair: Pair, num_pairs: int, options: PrepareOptions, files: dict[str, FileRecord]
) -> tuple[PairCounts, SideRecord, SideRecord]:
    models = partial / vocabulary_file("source"), partial / vocabulary_file("target")
    vocabularies = [Vocabulary.load(model) for model in models]
    totals: Counter[str] = Counter()
    with (
        _TokenWriter(partial, "source", vocabularies[0]) as source,
        _TokenWriter(partial, "target", vocabularies[1]) as target,
        progress("Encoding", num_pairs) as advance,
    ):
        for chunk in encode_pairs(*pair, models, options.limits, options.num_processes):
            source.append(chunk.source)
            target.append(chunk.target)
            totals["read"] += chunk.num_read
            totals["kept"] += len(chunk.source.lengths)
            for reason in ("dropped_empty", "dropped_length", "dropped_ratio"):
                totals[reason] += getattr(chunk, reason)
            advance(chunk.num_read)
    if not totals["kept"]:
        raise UserError(
            f"no pair of {pair[0]} and {pair[1]} passes the filters: of {totals['read']} pairs, "
            f"{totals['dropped_empty']} have an empty side, {totals['dropped_length']} exceed --max-length "
            f"{options.limits.max_length}, {totals['dropped_ratio']} exceed --max-ratio {options.limits.max_ratio:g}"
        )
    records = source.describe(files), target.describe(files)
    given = options.source_model, options.target_model
    for side, record, writer, model in zip(SIDES, records, (source, target), given, strict=True):
        _doubt(doubts.of_unknown(side, writer.unknown, record.num_unknown / record.num_tokens, model))
    return PairCounts(**totals), *records


def _recorded_options(options: PrepareOptions) -> Options:
    trained = options.source_model is None or options.target_model is None
    subwords = options.subwords
    return Options(
        vocab_size=subwords.vocab_size if trained else None,
        model_type=subwords.model_type if trained else None,
        character_coverage=subwords.character_coverage if trained else None,
        byte_fallback=subwords.byte_fallback if trained else None,
        sample_sentences=subwords.sample_sentences if trained else None,
        normalization=subwords.normalization if trained else None,
        max_length=options.limits.max_length,
        max_ratio=options.limits.max_ratio if math.isfinite(options.limits.max_ratio) else None,
    )
