"""The batches of a program's DataLoader as tickets: the same on every rank, whoever takes which."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from hpcasync.errors import UserError
from hpcasync.program.dealing import Dealt, Draw, process_options
from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.train.loop.batch_order import BatchOrder

_EPOCHS_KEPT = 2


class BatchPlan:
    """What each ticket stands for: the indices that the loader's own sampler gives in its data epoch.

    A data epoch's order depends on the seed and the epoch alone. Samplers that draw from torch or from `random`, or
    have a generator, are seeded; those with `set_epoch` are told the epoch.

    Args:
        loader: of the program; its dataset has to have a length.
    """

    is_split = False

    def __init__(self, loader: "DataLoader[Any]", seed: int) -> None:
        assert loader.batch_sampler is not None
        self._loader = loader
        self._sampler: Iterable[list[int]] = loader.batch_sampler
        self._seed = seed
        self._epochs: dict[int, list[list[int]]] = {}
        self._num_batches = len(self._indices(0))
        if not self._num_batches:
            dataset = loader.dataset
            size = len(dataset) if isinstance(dataset, Sized) else 0
            raise UserError(f"the DataLoader has no batches: its dataset has {size} samples")

    @property
    def batch_size(self) -> int:
        """Samples in the first batch."""
        return len(self.batch(0))

    def num_batches(self) -> int:
        return self._num_batches

    def locate(self, ticket: int) -> tuple[int, int]:
        return divmod(ticket, self._num_batches)

    def batch(self, ticket: int) -> list[int]:
        """Indices of the samples.

        Raises:
            UserError: the sampler gave fewer batches in this data epoch than in the first.
        """
        epoch, number = self.locate(ticket)
        return self._indices(epoch)[number]

    def describe(self) -> str:
        return f"{self._num_batches:,} batches per epoch"

    def order(self, ledger: TicketLedger, num_epochs: int) -> BatchOrder:
        return BatchOrder(ledger.remaining(), self, num_epochs)

    def dealt(self, draw: Draw) -> Iterator[Dealt]:
        tickets = Tickets(self, draw)
        for batch in dealt_out(self._loader, tickets):
            ticket, num_samples = tickets.next()
            yield Dealt(ticket, self.locate(ticket)[0], num_samples, batch)

    @property
    def digest(self) -> str:
        """SHA-256 (16 hexadecimal digits) of the first data epoch's order."""
        return hashlib.sha256(repr(self._indices(0)).encode()).hexdigest()[:16]

    def _indices(self, epoch: int) -> list[list[int]]:
        if epoch not in self._epochs:
            while len(self._epochs) >= _EPOCHS_KEPT:
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = batches = self._draw(epoch)
            if epoch and len(batches) != self._num_batches:
                raise UserError(
                    f"the sampler gives {len(batches)} batches in epoch {epoch} and {self._num_batches} in the first: "
                    "it has to give the same number in each"
                )
        return self._epochs[epoch]

    def _draw(self, epoch: int) -> list[list[int]]:
        seed = (self._seed * 1_000_003 + epoch) % 2**63
        state = random.getstate()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                random.seed(seed)
                for sampler in _with_those_inside(self._sampler):
                    if isinstance(generator := getattr(sampler, "generator", None), torch.Generator):
                        generator.manual_seed(seed)
                    if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                        set_epoch(epoch)
                return [[int(index) for index in batch] for batch in self._sampler]
        finally:
            random.setstate(state)


class Tickets:
    """A batch sampler that draws tickets, and remembers which are on their way through the loader.

    Args:
        plan: what they stand for.
        draw: gives the next one; None where there are no more.
    """

    def __init__(self, plan: BatchPlan, draw: Draw) -> None:
        self._plan = plan
        self._draw = draw
        self._drawn: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        while (ticket := self._draw()) is not None:
            self._drawn.append(ticket)
            yield self._plan.batch(ticket)

    def next(self) -> tuple[int, int]:
        """The ticket of the batch that the loader gives now, and how many samples it has; batches keep their order."""
        ticket = self._drawn.pop(0)
        return ticket, len(self._plan.batch(ticket))


def dealt_out(loader: "DataLoader[Any]", tickets: Tickets) -> "DataLoader[Any]":
    """The same loader, but for its batches: dataset, collate_fn, worker processes and pinning stay."""
    return DataLoader(loader.dataset, batch_sampler=tickets, collate_fn=loader.collate_fn, **process_options(loader))


def _with_those_inside(sampler: Any) -> Iterator[Any]:
    """A batch sampler, and the sampler that it takes indices from."""
    yield sampler
    if isinstance(sampler, BatchSampler):
        yield sampler.sampler
