"""The section of the configuration that says what a run is trained on."""

from pydantic import Field, model_validator

from hpcasync.config.section import Section
from hpcasync.config.strict import UserPath


class DataConfig(Section):
    """Where the prepared corpus is and how it is cut into batches."""

    path: UserPath = Field(description="directory made by `hpcasync data prepare`")
    more: tuple[UserPath, ...] = Field(
        (), description="further directories, with the same vocabularies; validation text is that of data.path"
    )
    repeat: tuple[int, ...] = Field(
        (),
        description="how often a data epoch has each corpus, data.path first, then those of data.more; default: once",
    )
    batch_tokens: int = Field(
        2048, ge=1, le=2**31 - 1, description="limit on padded tokens of the longer side of a micro-batch"
    )
    prefetch: bool | None = Field(
        None, description="a worker makes its next batch while its device computes; default: if that is a GPU"
    )
    sampling: float = Field(
        0.0,
        ge=0,
        le=1,
        description="cut sentences into other pieces each time: of BPE models the part of merges left out (dropout, "
        "0.1), of unigram models the exponent of probabilities (0.1 to 0.5; the less, the more varied); 0: never",
    )

    @model_validator(mode="after")
    def _check_repeat(self) -> "DataConfig":
        if self.repeat and len(self.repeat) != 1 + len(self.more):
            raise ValueError(
                f"repeat must have a number for each of the {1 + len(self.more)} corpora, not {len(self.repeat)}"
            )
        if any(number < 1 for number in self.repeat):
            raise ValueError(f"repeat counts from 1, not {min(self.repeat)}: leave a corpus out of data.more instead")
        return self

    @property
    def repeats(self) -> tuple[int, ...]:
        """How often a data epoch has each corpus."""
        return self.repeat or (1,) * (1 + len(self.more))
