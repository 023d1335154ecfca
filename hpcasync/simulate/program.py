"""What the simulated cluster does, apart from when: a training run with gradients, or one that only counts tokens."""

from typing import Any, Protocol

from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Update


class Program(Protocol):
    """The work of workers and servers. The cluster calls it in the order of the virtual clock."""

    @property
    def parameters(self) -> Any:
        """The newest version of the parameters, to be given back to `gradient`; never changed afterwards."""

    def ticket(self, number: int) -> int | None:
        """The ticket of the `number`-th batch drawn; None after the end of the corpus."""

    def num_tokens(self, ticket: int) -> int:
        """Target tokens of a batch, on which the time of computing it depends."""

    def gradient(
        self, worker: int, version: int, parameters: Any, tickets: tuple[int, ...], compute_seconds: float
    ) -> PushRecord:
        """Compute the gradient of some batches; 0 tokens in the record if it is rejected."""

    def accumulate(self, worker: int, record: PushRecord) -> None:
        """Add the gradient that was computed last, whose record this is, to the sum of the group, or of its host."""

    def exchange(self) -> None:
        """Add the sums of other hosts to the group's."""

    def discard(self) -> None:
        """Forget what has been added since the last update."""

    def apply(self, update: Update) -> None:
        """Make the optimizer step of a group; `parameters` is of the new version then."""

    def after_update(self, update: Update, now: float) -> None:
        """An update has been published at `now` seconds."""

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        """A push has been dropped: rejected by its worker, too stale, or (`is_stale` false) after the end."""

    def should_stop(self) -> bool:
        """Whether training is over."""
