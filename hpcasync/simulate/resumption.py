"""Going on with an interrupted simulation, bit for bit as if nothing had happened.

Virtual times and the coordinator's decisions do not depend on what gradients hold, but for those that are rejected. So
an interrupted simulation is replayed from its start without gradients, which takes moments, up to the update that its
checkpoint holds; there the parameters are put in place, and it goes on with gradients. Beside the servers' shards that
needs the older versions that workers are still computing with, kept in the shards' files too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hpcasync.comm.shards import Shard
from hpcasync.errors import UserError
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.ps.protocol.updates import Update

if TYPE_CHECKING:
    from hpcasync.simulate.training import Training

# Begins what only a simulation needs, in a shard's file; real runs pass over it.
_PREFIX = "simulation."
_REJECTED = "rejected"
_VERSION = "version."
_MEMORY = "memory."

Tensors = dict[str, torch.Tensor]


class Version:
    """A version of the parameters as workers get it.

    Attributes:
        number: of updates.
        vector: [num_elements] float32 on the CPU; None while an interrupted simulation is replayed.
    """

    def __init__(self, number: int, vector: torch.Tensor | None) -> None:
        self.number = number
        self.vector = vector


@dataclass(frozen=True)
class Moment:
    """What the moment just after an update needs to be gone on from, beside the servers' shards.

    Attributes:
        versions: older ones that somebody still holds, by number.
        memories: of each server (`SimulatedServer.memory`).
    """

    versions: dict[int, Version]
    memories: Sequence[Tensors]

    def tensors(self, server: int, shard: Shard, rejected: Sequence[int]) -> Tensors:
        """What goes into a server's shard file: vectors of the shard, by name."""
        tensors = {f"{_MEMORY}{key}": tensor for key, tensor in self.memories[server].items()}
        for number, version in self.versions.items():
            assert version.vector is not None
            tensors[f"{_VERSION}{number}"] = version.vector[shard.start : shard.stop].clone()
        if server == 0:  # of two dimensions, as no vector is
            tensors[_REJECTED] = torch.tensor([rejected], dtype=torch.int64)
        return {_PREFIX + key: tensor for key, tensor in tensors.items()}


@dataclass(frozen=True)
class SavedSimulation:
    """A checkpoint of a simulation.

    Attributes:
        name: for people.
        version: number of updates.
        shards: tensors of each shard file.
    """

    name: str
    version: int
    shards: Sequence[Tensors]

    def check(self) -> None:
        """Refuse what no simulation of this version has written."""
        if _PREFIX + _REJECTED not in self.shards[0]:
            raise UserError(
                f"--resume: {self.name} was not written by `hpcasync simulate` of this version: go on with "
                "`hpcasync train --resume`, or start anew with --overwrite"
            )

    def rejected(self) -> set[int]:
        """Batches whose gradients were not finite."""
        return set(self.shards[0][_PREFIX + _REJECTED].flatten().tolist())

    def memory(self, server: int) -> Tensors:
        prefix = _PREFIX + _MEMORY
        return {key.removeprefix(prefix): value for key, value in self.shards[server].items() if key.startswith(prefix)}

    def vector(self, version: int) -> torch.Tensor:
        """[num_elements] parameters of an older version."""
        return torch.cat([shard[f"{_PREFIX}{_VERSION}{version}"] for shard in self.shards])


class Replay:
    """A program (`simulate.program`) that replays a run without gradients up to a checkpoint, then trains on.

    Args:
        training: makes the rest of the run.
        ledger: empty; the batches that are done with are added.
    """

    def __init__(self, training: "Training", saved: SavedSimulation, ledger: TicketLedger) -> None:
        self._training = training
        self._saved = saved
        self._ledger = ledger
        self._rejected = saved.rejected()
        self._is_live = saved.version == 0
        if self._is_live:
            training.resume(saved)

    @property
    def parameters(self) -> Version:
        """See `Program`; without its vector in a replay."""
        return self._training.parameters

    def ticket(self, number: int) -> int | None:
        return self._training.ticket(number)

    def num_tokens(self, ticket: int) -> int:
        return self._training.num_tokens(ticket)

    def gradient(
        self, worker: int, version: int, parameters: Version, tickets: tuple[int, ...], compute_seconds: float
    ) -> PushRecord:
        """See `Program`; in a replay only the record."""
        if self._is_live:
            return self._training.gradient(worker, version, parameters, tickets, compute_seconds)
        is_rejected = not self._rejected.isdisjoint(tickets)
        num_tokens = 0 if is_rejected else sum(map(self.num_tokens, tickets))
        return PushRecord(version, num_tokens, 0.0, 0, compute_seconds, tickets)

    def accumulate(self, worker: int, record: PushRecord) -> None:
        if self._is_live:
            self._training.accumulate(worker, record)

    def exchange(self) -> None:
        if self._is_live:
            self._training.exchange()

    def discard(self) -> None:
        if self._is_live:
            self._training.discard()

    def apply(self, update: Update) -> None:
        if self._is_live:
            self._training.apply(update)
        else:
            self._training.skip(update)

    def after_update(self, update: Update, now: float) -> None:
        """See `Program`; the update that the checkpoint holds ends the replay."""
        if self._is_live:
            self._training.after_update(update, now)
            return
        self._ledger.add(ticket for push in update.pushes for ticket in push.record.tickets)
        if update.version == self._saved.version:
            self._is_live = True
            self._training.resume(self._saved)

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        if self._is_live:
            self._training.after_drop(record, is_stale=is_stale)
        elif is_stale or not record.num_tokens:
            self._ledger.add(record.tickets)

    def should_stop(self) -> bool:
        return self._is_live and self._training.should_stop()
