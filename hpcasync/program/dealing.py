"""How the batches of a program's DataLoader come to the workers, whatever kind of dataset it has."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import DataLoader

from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.train.loop.batch_order import TicketOrder

# Gives the next ticket of a worker; None where there are no more.
Draw = Callable[[], int | None]


@dataclass(frozen=True)
class Dealt:
    """A batch that falls to a worker.

    Attributes:
        ticket: which one it is.
        epoch: of the data.
        num_samples: in it.
        batch: as the loader's collate_fn has made it.
    """

    ticket: int
    epoch: int
    num_samples: int
    batch: Any


class Plan(Protocol):
    """The batches of a job, as tickets.

    Attributes:
        is_split: each worker has a part of its own, and draws from that.
    """

    is_split: bool

    @property
    def batch_size(self) -> int:
        """Samples in a batch."""

    def num_batches(self) -> int:
        """Batches of a data epoch; 0: nobody knows."""

    def describe(self) -> str:
        """For people."""

    @property
    def digest(self) -> str:
        """The same for the same batches."""

    def order(self, ledger: TicketLedger, num_epochs: int) -> TicketOrder:
        """What a number that is drawn stands for, where these tickets have been applied."""

    def dealt(self, draw: Draw) -> Iterator[Dealt]:
        """The batches of the tickets that are drawn."""


def process_options(loader: "DataLoader[Any]") -> dict[str, Any]:
    """What a loader does with processes of its own, and pinned memory."""
    names = ("prefetch_factor", "persistent_workers", "worker_init_fn", "multiprocessing_context", "timeout")
    options = {name: getattr(loader, name) for name in names if loader.num_workers}
    return {**options, "num_workers": loader.num_workers, "pin_memory": loader.pin_memory}
