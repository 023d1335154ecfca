"""When training ends, and how: limits, signals, too many gradients that are not finite, a loss that runs away."""

import math
from dataclasses import dataclass

from hpcasync.config.schedule import StopConfig
from hpcasync.exit_codes import DIVERGED, PREEMPTED, RANK_LOST
from hpcasync.ps.protocol.record import UNKNOWN_LOSS
from hpcasync.runs.counters import Counters
from hpcasync.train.supervise import stop_signals

# Gradients in a row that are not finite, and then no more: reduced precision rejects a few, early.
_REJECTED_AT_THE_END = 20
# Updates whose mean loss is compared: that of one update says little.
WINDOW_UPDATES = 20


@dataclass(frozen=True)
class Ending:
    """Why training ends.

    Attributes:
        reason: for people.
        exit_code: of all ranks: 0, or one of `hpcasync.exit_codes`.
    """

    reason: str
    exit_code: int = 0

    @property
    def is_preempted(self) -> bool:
        """Whether the run is to go on later, and time is short now."""
        return self.exit_code in (PREEMPTED, RANK_LOST)

    @property
    def is_diverged(self) -> bool:
        """Whether the present parameters are of no use."""
        return self.exit_code == DIVERGED


class StopRules:
    """Finds out when training ends. The first reason stands."""

    def __init__(self, stop: StopConfig) -> None:
        self._stop = stop
        self._ending: Ending | None = None
        self._num_rejected_in_a_row = 0
        self._divergence = Divergence(stop.diverged) if stop.diverged else None

    @property
    def ending(self) -> Ending | None:
        return self._ending

    def check_counters(self, counters: Counters) -> None:
        if self._stop.updates and counters.num_updates >= self._stop.updates:
            self._end(f"stop.updates={self._stop.updates} reached")
        if self._stop.tokens and counters.target_tokens >= self._stop.tokens:
            self._end(f"stop.tokens={self._stop.tokens} reached")

    def check_time(self, seconds: float) -> None:
        if self._stop.seconds and seconds >= self._stop.seconds:
            self._end(f"stop.seconds={self._stop.seconds:g} reached")

    def check_signals(self) -> None:
        """End where a signal asks for it."""
        if self._ending is None and (reason := stop_signals.reason()):
            self._end(reason, PREEMPTED)

    def end_on_request(self) -> None:
        self._end("the program asked for it")

    def lose_all(self) -> None:
        self._end("all workers have died", RANK_LOST)

    def interrupt(self, reason: str) -> None:
        """What remains to be done after the end of training is left to a resumed run."""
        self._ending = Ending(reason, PREEMPTED)

    def after_update(self, counters: Counters, loss_sum: float, target_tokens: int) -> None:
        """An update was made; its loss in nats, summed over its target tokens."""
        self._num_rejected_in_a_row = 0
        if loss_sum == UNKNOWN_LOSS:
            pass
        elif not math.isfinite(loss_sum):
            self._end("training has diverged: the loss is not finite", DIVERGED)
        elif self._divergence is not None and (text := self._divergence.add(loss_sum, target_tokens)):
            self._end(f"training has diverged: {text}, stop.diverged={self._stop.diverged:g}", DIVERGED)
        self.check_counters(counters)

    def after_rejected(self) -> None:
        """A gradient was not finite. Reduced precision rejects a few of every worker while it finds its scale."""
        self._num_rejected_in_a_row += 1
        limit = self._stop.rejected
        if limit and self._num_rejected_in_a_row >= limit:
            self._end(f"training has diverged: {limit} gradients in a row were not finite (stop.rejected)", DIVERGED)

    def end_of_corpus(self, num_updates: int) -> Ending:
        """What it means that there are no batches left: no success where the last gradients have all been rejected.

        Args:
            num_updates: of the run, also before it went on.
        """
        num_rejected = self._num_rejected_in_a_row
        if num_rejected >= _REJECTED_AT_THE_END or (num_rejected and not num_updates):
            return Ending(f"training has diverged: the last {num_rejected} gradients were not finite", DIVERGED)
        return Ending("end of the corpus")

    def check_patience(self, num_stalled: int, ended_by: str = "") -> None:
        """Compare with the limit on validations without improvement.

        Args:
            num_stalled: that many in a row were no better than the best.
            ended_by: reason of the end that a run is resumed from. A score that came after it takes nothing back.
        """
        reason = f"stop.patience={self._stop.patience} validations without improvement"
        if self._stop.patience and (num_stalled >= self._stop.patience or ended_by == reason):
            self._end(reason)

    def _end(self, reason: str, exit_code: int = 0) -> None:
        if self._ending is None:
            self._ending = Ending(reason, exit_code)


class Divergence:
    """Whether the mean loss per token over WINDOW_UPDATES updates is `factor` times the lowest such mean before.

    A resumed run compares from its resumption on.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._lowest = math.inf
        self._num_updates = 0
        self._loss_sum = 0.0
        self._target_tokens = 0

    def add(self, loss_sum: float, target_tokens: int) -> str:
        """Take note of an update's loss, summed over its target tokens; says what is wrong, or nothing."""
        self._num_updates += 1
        self._loss_sum += loss_sum
        self._target_tokens += target_tokens
        if self._num_updates < WINDOW_UPDATES:
            return ""
        mean = self._loss_sum / max(1, self._target_tokens)
        self._num_updates, self._loss_sum, self._target_tokens = 0, 0.0, 0
        if mean > self._factor * self._lowest:
            return f"the loss of the last {WINDOW_UPDATES} updates is {mean:.3f}, after {self._lowest:.3f}"
        self._lowest = min(self._lowest, mean)
        return ""
