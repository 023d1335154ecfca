"""What search needs of a model's decoder state."""

from typing import Protocol

from torch import Tensor


class DecoderState(Protocol):
    """The state of a batch of hypotheses between two decoder steps; one row per hypothesis."""

    @property
    def num_rows(self) -> int:
        """Number of hypotheses N."""

    def select_(self, rows: Tensor) -> None:
        """Replace the state by the given rows of it.

        Args:
            rows: [M] int64, indices into the current rows; repeats expand, omissions remove. M may differ from N.
        """
