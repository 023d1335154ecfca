"""The least that a coordinator needs beside it: a learning rate, an end, and nothing saved."""

import torch

from hpcasync.comm.shards import Shard
from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.ps.protocol.updates import Update


class MinimalObserver:
    """An `Observer` and `ShardSaver` for runs that keep nothing but the final parameters.

    Args:
        num_updates: training ends after so many; 0: when the workers finish.

    Attributes:
        losses: loss per token of each update so far.
        final: [num_elements] parameters, once `Engine.serve` has returned (coordinator only).
    """

    def __init__(self, learning_rate: float, num_updates: int = 0) -> None:
        self._learning_rate = learning_rate
        self._num_updates = num_updates
        self.losses: list[float] = []
        self.final: torch.Tensor | None = None

    def begin(self) -> None:
        """Nothing."""

    def learning_rate(self, update: Update) -> float:
        return self._learning_rate

    def after_update(self, update: Update, learning_rate: float) -> SaveRequest | None:
        self.losses.append(update.loss_sum / max(1, update.num_tokens))
        return None

    def after_arrival(self, worker: int) -> None:
        """Nothing."""

    def after_finish(self, worker: int) -> None:
        """Nothing."""

    def after_loss(self, worker: int, *, is_last: bool) -> None:
        """Nothing."""

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        """Nothing."""

    def final_request(self) -> SaveRequest | None:
        return SaveRequest("final", snapshot=True, checkpoint=False)

    def save_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        self.final = vector

    def shard_saved(self, saved: SavedShard) -> None:
        """Nothing."""

    def should_stop(self) -> bool:
        return bool(self._num_updates) and len(self.losses) >= self._num_updates

    def save_shard(self, name: str, server_index: int, shard: Shard, tensors: dict[str, torch.Tensor]) -> None:
        """Nothing is saved by shards."""

    def poll(self) -> list[SavedShard]:
        return []

    def wait(self) -> list[SavedShard]:
        return []
