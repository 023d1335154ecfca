"""The sections of the configuration that say how snapshots are scored, and what of a run is kept to go on from."""

from typing import Literal

from pydantic import Field, model_validator

from hpcasync.config.section import MOST_THREADS, Section
from hpcasync.config.strict import UserPath

Tokenizer = Literal[
    "auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "flores101", "flores200", "spBLEU-1K", "none"
]


class ValidationConfig(Section):
    """Scoring of snapshots while training goes on."""

    every: int = Field(0, ge=0, description="updates between snapshots; 0: only at the end")
    score: bool = Field(
        True, description="score snapshots during the run; else later with `hpcasync evaluate RUN_DIR --all`"
    )
    metric: Literal["bleu", "chrf", "comet", "loss"] = Field("bleu", description="what makes a snapshot the best")
    comet: UserPath | None = Field(
        None, description="directory of a COMET model, to score with it, too; default: none (docs/translate.md)"
    )
    tokenize: Tokenizer = Field(
        "auto",
        description="of BLEU, as sacreBLEU's; auto: by the corpus's target language: zh, ja-mecab, ko-mecab, else 13a",
    )
    beam: int = Field(5, ge=1, le=10_000, description="beam of the search for BLEU and chrF")
    max_sentences: int = Field(0, ge=0, description="pairs searched for BLEU and chrF; 0: all")
    threads: int = Field(1, ge=1, le=MOST_THREADS, description="intra-op threads of the scoring process")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="of the scoring process; auto: a GPU that no rank uses, or the CPU; cuda: any",
    )
    keep: int = Field(0, ge=0, description="most recent snapshots kept, and the best one; 0: all")

    @model_validator(mode="after")
    def _check_comet(self) -> "ValidationConfig":
        if self.metric == "comet" and self.comet is None:
            raise ValueError("metric comet needs a model: set comet to its directory")
        return self


class CheckpointConfig(Section):
    """Checkpoints to go on from."""

    every: int = Field(0, ge=0, description="updates between checkpoints; 0: with every snapshot and at the end")
    keep: int = Field(3, ge=1, description="most recent checkpoints kept, and that of the best snapshot")
    keep_every: int = Field(0, ge=0, description="checkpoints at multiples of so many updates are kept too; 0: none")
