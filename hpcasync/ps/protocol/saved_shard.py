"""What a server tells the coordinator about its part of a checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SavedShard:
    """A shard file that is complete and on disk, or could not be written.

    Attributes:
        name: of the checkpoint, for example "u00000400".
        file: name of the file in it.
        sha256: its digest in hexadecimal digits; empty if it was not written.
        num_bytes: its size.
        error: why it was not written; else empty.
    """

    name: str
    file: str
    sha256: str = ""
    num_bytes: int = 0
    error: str = ""
