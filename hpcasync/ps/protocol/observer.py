"""What servers ask of the program that trains, and tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hpcasync.comm.shards import Shard
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.ps.protocol.updates import Update

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SaveRequest:
    """What to save of the version that was just published.

    Attributes:
        name: names the version, for example "u00000400".
        snapshot: assemble the whole (averaged, where there is an average) parameter vector at the coordinator.
        checkpoint: every server saves its shard with its optimizer state.
    """

    name: str
    snapshot: bool
    checkpoint: bool


class Observer(Protocol):
    """What the coordinator asks of, and tells, the training program."""

    def learning_rate(self, update: Update) -> float:
        """The learning rate of an update that is about to be made."""

    def after_update(self, update: Update, learning_rate: float) -> SaveRequest | None:
        """An update has been published; return what to save of it."""

    def after_arrival(self, worker: int) -> None:
        """A push of a worker has arrived."""

    def after_finish(self, worker: int) -> None:
        """A worker pushes nothing more; told again and again."""

    def after_loss(self, worker: int, *, is_last: bool) -> None:
        """A worker has died; its batches go to the others. `is_last`: there are none, and batches are left to do."""

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        """A push has been dropped: rejected by its worker if it has no tokens, else too stale or after the end."""

    def save_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        """Keep an assembled [num_elements] float32 vector; it is the callee's own."""

    def shard_saved(self, saved: SavedShard) -> None:
        """One of the servers has done its part of a save."""

    def should_stop(self) -> bool:
        """Whether training is over; asked often."""

    def final_request(self) -> SaveRequest | None:
        """Training is over; return what is still to be saved of the newest version."""


class ShardSaver(Protocol):
    """Where a server puts the state of its shard."""

    def save_shard(self, name: str, server_index: int, shard: Shard, tensors: dict[str, torch.Tensor]) -> None:
        """Start to save copies of a shard's tensors, in the background."""

    def poll(self) -> list[SavedShard]:
        """What became of the saves that have ended since the last call."""

    def wait(self) -> list[SavedShard]:
        """Like `poll`, after waiting for all saves that were started."""
