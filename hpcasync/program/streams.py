"""A program's IterableDataset: its batches have no indices, so whoever wants one has to read what is before it."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from hpcasync.errors import UserError
from hpcasync.program.dealing import Dealt, Draw, process_options
from hpcasync.ps.protocol.tickets import TicketLedger, TicketSequence
from hpcasync.train.loop.batch_order import TicketOrder


class StreamPlan:
    """The batches of a stream, in the order in which it gives them, epoch after epoch.

    Every worker reads the whole stream, which has to be the same on all of them, and keeps the batches that it is
    dealt: ticket t is the t-th. A dataset with `set_worker(index, number)` is told whose part to give instead, and the
    k-th batch of worker w is ticket k * number + w.

    What a dataset draws from torch or from `random` is seeded for each epoch; `set_epoch` is told which it is. A run
    that goes on reads again what it has been trained on, and leaves it out.

    Args:
        num_epochs: passes over the stream; 0: endless.
        worker: index of this worker; None: this rank is none.
    """

    def __init__(
        self, loader: "DataLoader[Any]", seed: int, num_epochs: int, worker: int | None, num_workers: int
    ) -> None:
        self._loader = loader
        self._seed = seed
        self._num_epochs = num_epochs
        self._num_workers = num_workers
        set_worker = getattr(loader.dataset, "set_worker", None)
        self.is_split = callable(set_worker)
        if callable(set_worker) and worker is not None:
            set_worker(worker, num_workers)

    @property
    def batch_size(self) -> int:
        return self._loader.batch_size or 1

    def num_batches(self) -> int:
        return 0

    def describe(self) -> str:
        return "a stream, " + ("of which each worker reads its part" if self.is_split else "read by every worker")

    @property
    def digest(self) -> str:
        """What ranks, and a run that goes on, have to share."""
        parts = f", split among {self._num_workers}" if self.is_split else ""
        return f"a stream in batches of {self._loader.batch_size}{parts}"

    def order(self, ledger: TicketLedger, num_epochs: int) -> TicketOrder:
        """What a number stands for, where these tickets have been applied; there may be no batch for the last ones."""
        return SplitOrder(ledger, self._num_workers) if self.is_split else ledger.remaining()

    def dealt(self, draw: Draw) -> Iterator[Dealt]:
        ticket = draw()
        for number, (epoch, num_samples, batch) in enumerate(self._read()):
            if ticket is None:
                return
            if number == (ticket // self._num_workers if self.is_split else ticket):
                yield Dealt(ticket, epoch, num_samples, batch)
                ticket = draw()

    def _read(self) -> Iterator[tuple[int, int, Any]]:
        """Epoch, number of samples and batch, one after the other."""
        loader = self._loader
        for epoch in islice(count(), self._num_epochs or None):
            if callable(set_epoch := getattr(loader.dataset, "set_epoch", None)):
                set_epoch(epoch)
            own = DataLoader(
                loader.dataset,
                batch_size=loader.batch_size,
                drop_last=loader.drop_last,
                collate_fn=_Counted(loader.collate_fn),
                **{**process_options(loader), **({"persistent_workers": False} if loader.num_workers else {})},
            )
            is_empty = True
            for num_samples, batch in _iterate(own, _Drawing(self._seed * 1_000_003 + epoch)):
                is_empty = False
                yield epoch, num_samples, batch
            if is_empty:
                raise UserError(f"the stream gives no batch of {loader.batch_size} in epoch {epoch}")


class SplitOrder:
    """What numbers stand for where each worker has a part: worker w has numbers w, w + num_workers, … for its own."""

    def __init__(self, ledger: TicketLedger, num_workers: int) -> None:
        self._parts: list[TicketSequence] = [
            TicketLedger(
                -((worker - ledger.low) // num_workers),
                (ticket // num_workers for ticket in ledger.above if ticket % num_workers == worker),
            ).remaining()
            for worker in range(num_workers)
        ]

    def ticket(self, number: int) -> int:
        number, worker = divmod(number, len(self._parts))
        return self._parts[worker].ticket(number) * len(self._parts) + worker


@dataclass(frozen=True)
class _Counted:
    """A collate_fn that says how many samples there were, too."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, samples: list[Any]) -> tuple[int, Any]:
        return len(samples), self.collate(samples)


class _Drawing:
    """Random numbers of a stream's own, the same on every rank whatever its program draws in between."""

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(seed % 2**63).get_state()
        self._python = random.Random(seed).getstate()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """For `torch` and `random`, in this process and those that a loader starts."""
        outside = torch.random.get_rng_state(), random.getstate()
        torch.random.set_rng_state(self._torch)
        random.setstate(self._python)
        try:
            yield
        finally:
            self._torch, self._python = torch.random.get_rng_state(), random.getstate()
            torch.random.set_rng_state(outside[0])
            random.setstate(outside[1])


def _iterate(loader: "DataLoader[Any]", drawing: _Drawing) -> Iterator[Any]:
    with drawing.in_use():
        batches = iter(loader)
    while True:
        with drawing.in_use():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
