"""The batches of a translation model: the section `data` of a configuration."""

from pydantic import Field

from hpcasync.config.section import Section
from hpcasync.config.strict import UserPath


class DataConfig(Section):
    """Where the prepared corpus is and how it is cut into batches."""

    path: UserPath = Field(description="directory made by `hpcasync data prepare`")
    batch_tokens: int = Field(
        2048, ge=1, le=2**31 - 1, description="limit on padded tokens of the longer side of a micro-batch"
    )
    prefetch: bool | None = Field(
        None, description="a worker makes its next batch while its device computes; default: if that is a GPU"
    )
