"""The manifest of a prepared corpus: what is in the directory, how it was made, and the digest of every file."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpcasync.complete_files import partial_of
from hpcasync.errors import UserError

MANIFEST_NAME = "manifest.json"
SIDES = ("source", "target")
TEST_SETS = ("test", *(f"test{number}" for number in range(2, 100)))
# Names of untokenised text: valid, test, and further test sets as test2, test3 …
HELD_OUT = r"^(valid|test([2-9]|[1-9][0-9])?)$"


def _is_missing(value: Any) -> bool:
    return not value


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """Size in bytes and SHA-256 of a file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SideRecord(_Record):
    """One side of the training pairs; lengths in pieces, without beginning and end of sentence."""

    num_pieces: int = Field(gt=0, description="size of the vocabulary, special tokens included")
    num_tokens: int = Field(gt=0)
    num_unknown: int = Field(ge=0)
    max_length: int = Field(gt=0)
    dtype: Literal["<u2", "<u4"]


class PairCounts(_Record):
    """What became of the training pairs that were read; each dropped pair is counted under its first reason."""

    read: int = Field(gt=0)
    kept: int = Field(gt=0)
    dropped_empty: int = Field(ge=0)
    dropped_length: int = Field(ge=0)
    dropped_ratio: int = Field(ge=0)


class Options(_Record):
    """The options that the directory depends on."""

    vocab_size: int | None = Field(description="asked for; null where a given model was used for both sides")
    model_type: Literal["unigram", "bpe"] | None
    character_coverage: float | None
    byte_fallback: bool | None
    sample_sentences: int | None
    max_length: int
    normalization: str | None = Field(
        None, exclude_if=_is_missing, description="of models trained here; missing: nmt_nfkc, as in releases before"
    )
    max_ratio: float | None = Field(description="null: no limit")


class Manifest(_Record):
    """The content of manifest.json. It holds no times and no paths: the same input gives the same bytes."""

    format: Literal["hpcasync-corpus"] = "hpcasync-corpus"
    version: Literal[1] = 1
    source_language: str | None = None
    target_language: str | None = None
    joint: bool
    pairs: PairCounts
    source: SideRecord
    target: SideRecord
    held_out: dict[Annotated[str, Field(pattern=HELD_OUT)], int] = Field(description="pairs of untokenised text")
    changed: dict[str, int] = Field(
        {}, exclude_if=_is_missing, description="lines of a file of untokenised text that normalisation changes"
    )
    options: Options
    sentencepiece_version: str
    files: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], FileRecord]

    @model_validator(mode="after")
    def _check_sizes(self) -> "Manifest":
        for side, record in zip(SIDES, (self.source, self.target), strict=True):
            expected = {
                train_file(side, "tokens"): record.num_tokens * int(record.dtype[-1]),
                train_file(side, "offsets"): 8 * (self.pairs.kept + 1),
            }
            for name, size in expected.items():
                if name not in self.files or self.files[name].size != size:
                    raise ValueError(f"the record of {name} disagrees with the counts")
            if vocabulary_file(side) not in self.files:
                raise ValueError(f"{vocabulary_file(side)} is not recorded")
        return self

    def to_bytes(self) -> bytes:
        return (self.model_dump_json(indent=2) + "\n").encode()

    @property
    def digest(self) -> str:
        """SHA-256 (16 hexadecimal digits) of the file, and so of the whole corpus."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]


def read_manifest(directory: Path) -> Manifest:
    """Read and validate the manifest of a directory."""
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        partial = partial_of(directory)
        hint = f"; {partial} is what an interrupted `data prepare` left: run it again" if partial.is_dir() else ""
        raise UserError(f"there is no prepared corpus {directory}{hint or '; make it with `hpcasync data prepare`'}")
    if not path.is_file():
        raise UserError(
            f"{directory} is no prepared corpus (no {MANIFEST_NAME}); make one with `hpcasync data prepare`"
        )
    content = path.read_bytes()
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{path} is no manifest that this release reads ({where}: {first['msg']}); prepare the corpus again"
        ) from error


def train_file(side: str, kind: Literal["tokens", "offsets"]) -> str:
    return f"train.{side}.{kind}"


def vocabulary_file(side: str) -> str:
    """Name of a SentencePiece model; a joint one is there under both names."""
    return f"{side}.spm"


def held_out_file(name: str, side: str) -> str:
    return f"{name}.{side}.txt"
