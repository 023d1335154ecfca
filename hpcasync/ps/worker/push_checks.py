"""What a worker looks at before it gives a gradient away."""

import sys
from dataclasses import replace

import torch

from hpcasync.errors import UserError
from hpcasync.ps.protocol.record import PushRecord

# In a row. Reduced precision loses a few while it finds its scale.
_MOST_LOST = 100


def is_finite(vector: torch.Tensor) -> bool:
    """Whether every element is. A norm is one pass over the vector, and is not finite where any element is not."""
    return bool(torch.isfinite(torch.linalg.vector_norm(vector)))


def require_vector(vector: torch.Tensor, num_elements: int, what: str) -> None:
    """Raises a UserError unless a vector can be copied to and from the windows element by element."""
    if vector.dtype != torch.float32 or vector.shape != (num_elements,):
        raise UserError(
            f"{what} is {str(vector.dtype).removeprefix('torch.')} of shape {tuple(vector.shape)}, not float32 of "
            f"shape ({num_elements},): give the vector of FlatParameters"
        )


class PushWatch:
    """Keeps gradients that are not finite from being applied, and ends a worker none of whose gradients are.

    Attributes:
        num_rejected: gradients that were not finite.
    """

    def __init__(self) -> None:
        self.num_rejected = 0
        self._num_lost = 0

    def checked(self, gradient: torch.Tensor, record: PushRecord) -> PushRecord:
        """The record to push: of the weight 0 if the gradient is not finite."""
        if record.num_tokens < 0:
            raise UserError(f"a push has the weight num_tokens={record.num_tokens}: give the terms that the loss sums")
        if record.num_tokens and not is_finite(gradient):
            self.num_rejected += 1
            if self.num_rejected == 1:
                print(
                    f"a gradient is not finite (batches {list(record.tickets)}, loss {record.loss_sum:g}): it is "
                    "counted and not applied, and so are others like it",
                    file=sys.stderr,
                    flush=True,
                )
            record = replace(record, num_tokens=0)
        self._num_lost = 0 if record.num_tokens else self._num_lost + 1
        if self._num_lost >= _MOST_LOST:
            cause, cure = "had a weight (PushRecord.num_tokens)", "give the number of terms that the loss sums"
            if self.num_rejected:
                cause, cure = "was finite", "lower the learning rate, or look for what the loss makes of these batches"
            raise UserError(f"none of this worker's last {_MOST_LOST} gradients {cause}, so it trains nothing: {cure}")
        return record
