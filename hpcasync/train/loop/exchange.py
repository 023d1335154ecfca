"""What a mode is to the training loop: where batches come from, and where gradients go."""

from typing import Protocol

import torch

from hpcasync.ps.protocol.record import PushRecord


class Exchange(Protocol):
    """How a worker takes part in training. Chosen once, by mode; the loop is the same for all."""

    @property
    def is_finished(self) -> bool:
        """Whether this worker has nothing more to do."""

    @property
    def version(self) -> int:
        """Of the parameters that this worker has."""

    def draw(self) -> int | None:
        """The ticket of the next batch, or None where there is none for this worker now."""

    def next_ticket(self) -> int | None:
        """What `draw` will give first after the push of what has been drawn, or None where that is not known.

        That batch can be made ahead.
        """

    def draw_ahead(self) -> int | None:
        """As `draw`, for who has batches made long before they are computed with; never mixed with it."""

    def rest(self) -> bool:
        """All that was drawn has been pushed, and there was nothing to draw; whether there is again, after a wait."""

    def expect_gradient(self) -> None:
        """The backward pass that is about to begin completes the gradient: pushing it may begin."""

    def push(self, gradient: torch.Tensor, record: PushRecord) -> None:
        """Give away a [num_elements] float32 gradient, summed (not averaged) over its tokens. May overwrite it."""

    def pull(self, parameters: torch.Tensor) -> None:
        """Bring [num_elements] float32 parameters up to date."""
