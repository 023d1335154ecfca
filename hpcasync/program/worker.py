"""A program's steps as a worker's: batches that it is dealt, gradients that it pushes, versions that it pulls."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hpcasync.config.program import ProgramConfig
from hpcasync.errors import UserError
from hpcasync.program.dealing import Plan
from hpcasync.program.moving import moved_to
from hpcasync.ps.protocol.record import UNKNOWN_LOSS, PushRecord
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.ps.worker.push_checks import is_finite
from hpcasync.timeline import Timeline
from hpcasync.train.loop.exchange import Exchange

# Gradients that a program drops in a row: GradScaler, while it halves its scale from 65,536.
_MOST_DROPPED = 50


@dataclass
class _Batch:
    """A batch that the program has been given, and has not made a step with.

    Attributes:
        ticket: which one it is.
        epoch: that it is of.
        num_samples: in it.
        weight: what it counts in an update.
        loss: as the program told it.
    """

    ticket: int
    epoch: int
    num_samples: int
    weight: int
    loss: float | torch.Tensor | None = None


class Worker:
    """Deals batches to the program, and does what its `optimizer.step()` stands for.

    Attributes:
        timeline: records the computation.
        slowdown: how many times as long each computation is made to take, for experiments.
        after_step: called after every step.
        begin_sum: has the gradient that backward begins to make summed at once, times a factor; None: at the step.
        epoch: of the newest batch.
    """

    def __init__(self, config: ProgramConfig, flat: FlatParameters, *, is_synchronous: bool) -> None:
        self._flat = flat
        self._is_synchronous = is_synchronous
        self._num_local = config.accumulate.local
        self._is_mean = config.reduction == "mean"
        self.timeline = Timeline()
        self.slowdown = 1.0
        self.epoch = 0
        self.after_step: Callable[[], None] = lambda: None
        self.begin_sum: Callable[[float], None] | None = None
        self._exchange: Exchange | None = None
        self._open: list[_Batch] = []
        # Of these, how many there were when backward last added to the gradient.
        self._num_computed = 0
        # Parameters whose gradient leaves as it is, and the gradient's count of changes then.
        self._leaving: set[int] = set()
        self._changes = 0
        self._has_old_gradient = False
        # In a row, by the program.
        self._num_dropped = 0
        self._has_stepped = False
        self._started = 0.0
        for parameter, _ in flat.bounds:
            parameter.register_post_accumulate_grad_hook(self._note_backward)  # type: ignore[no-untyped-call]

    @property
    def version(self) -> int:
        """Number of updates in the parameters that the module has."""
        return 0 if self._exchange is None else self._exchange.version

    @property
    def epoch_of_step(self) -> int:
        """Of the first batch since the last step."""
        return self._open[0].epoch if self._open else self.epoch

    @property
    def num_open(self) -> int:
        """Batches given to the program since the last step."""
        return len(self._open)

    def batches(self, plan: Plan, exchange: Exchange) -> Iterator[Any]:
        """The batches that it draws, on the module's device, until there are none or training has ended."""
        self._exchange = exchange
        device = self._flat.parameters.device
        exchange.pull(self._flat.parameters)
        self.zero_grad()
        is_over = False
        while not is_over:
            dealt = plan.dealt(exchange.draw_ahead)
            while not exchange.is_finished and (each := next(dealt, None)) is not None:
                self.epoch = each.epoch
                self._open.append(_Batch(each.ticket, each.epoch, each.num_samples, weight=each.num_samples))
                if len(self._open) == 1:
                    self._started = time.perf_counter()
                yield moved_to(device, each.batch)
            self._push_rest(exchange)
            is_over = not exchange.rest()

    def discard(self) -> None:
        """The program has left its loop: what it had of the newest batches is not pushed."""
        if self._leaving:
            self._push(len(self._open), is_wanted=False)  # others have parts of it
        self._open.clear()

    def end(self) -> None:
        """There are no more batches for this worker, or the program wants none."""
        exchange = self._exchange
        # Others may have batches left: in sync all have to take part.
        while self._is_synchronous and exchange is not None and not exchange.is_finished:
            self._flat.gradient.zero_()
            exchange.push(self._flat.gradient, PushRecord(exchange.version, 0, 0.0, 0, 0.0, ()))

    def _push_rest(self, exchange: Exchange) -> None:
        """There are no more batches: less than a step's count all the same."""
        if self._num_dropped and not self._has_stepped:
            raise self._no_step()
        if self._open and not self._has_old_gradient and not exchange.is_finished:
            self._push(len(self._open))
            self.zero_grad()

    def weigh(self, weight: int) -> None:
        """What the newest batch weighs, in place of its samples."""
        if not self._open:
            raise UserError(
                "job.weigh() without a batch: call it for each batch of the job's loop, before optimizer.step()"
            )
        if self._leaving:
            raise UserError("job.weigh() after backward(): with sums_during_backward the gradient is on its way then")
        if weight <= 0 or weight != int(weight):
            raise UserError(f"job.weigh({weight}): give the number of terms that the batch's loss is a mean or sum of")
        self._open[-1].weight = int(weight)

    def note_loss(self, loss: float | torch.Tensor) -> None:
        """The newest batch's loss; read when it is pushed."""
        if not self._open:
            raise UserError(
                "job.log() without a batch: call it in the loop over the job's batches (not the loader's), before "
                "optimizer.step()"
            )
        self._open[-1].loss = loss

    def zero_grad(self) -> None:
        """Begin a new gradient. One without a step is dropped: GradScaler leaves those out that overflow."""
        if self._num_computed and self._exchange is not None and not self._exchange.is_finished:
            self._push(self._num_computed, is_wanted=False)
            self._num_dropped += 1
            if self._num_dropped == _MOST_DROPPED:
                raise self._no_step()
        self._flat.gradient.zero_()
        self._has_old_gradient = False

    def step(self) -> None:
        """Push the gradient of all batches since the last step, wait as configured, and pull."""
        if self._exchange is None or not self._open:
            raise UserError("optimizer.step() without a batch of the job's loop since the last one")
        if self._has_old_gradient:
            raise UserError("optimizer.step() without optimizer.zero_grad() since the last one")
        num_batches = len(self._open)
        if self._is_synchronous and num_batches != self._num_local:
            raise self._unexpected(num_batches)
        self._num_dropped, self._has_stepped = 0, True
        self._push(num_batches)

    def _no_step(self) -> UserError:
        return UserError(
            f"optimizer.zero_grad() has dropped {self._num_dropped} gradient(s) in a row for which there was no "
            "optimizer.step(): is it missing?"
        )

    def _unexpected(self, num_batches: int) -> UserError:
        return UserError(
            f"{num_batches} batch(es) since the last optimizer.step(), and accumulate.local is {self._num_local}: say "
            f"hpcasync.join(…, accumulate={num_batches}), or make a step after every {self._num_local}; none is left "
            "out, as a gradient that is not finite is dropped here anyway"
        )

    def _push(self, num_batches: int, *, is_wanted: bool = True) -> None:
        """Give the gradient of the first open batches away; unwanted, they only count as done with."""
        assert self._exchange is not None
        if num_batches > self._num_local:
            raise self._unexpected(num_batches)
        batches, self._open = self._open[:num_batches], self._open[num_batches:]
        gradient, weight = self._flat.gradient, sum(batch.weight for batch in batches)
        is_sound = is_wanted and is_finite(gradient)
        seconds = time.perf_counter() - self._started
        self.timeline.add("compute", self._started, seconds, tokens=[weight])
        time.sleep((self.slowdown - 1) * seconds)
        if is_wanted:
            self._require_untouched(gradient)
        if self._is_mean and is_sound and not self._leaving:
            gradient.mul_(weight)
        self._leaving.clear()
        record = PushRecord(
            self._exchange.version,
            weight if is_sound else 0,
            self._loss_sum(batches),
            sum(batch.num_samples for batch in batches),
            seconds,
            tuple(batch.ticket for batch in batches),
        )
        self._exchange.push(gradient, record)
        self._exchange.pull(self._flat.parameters)
        self._has_old_gradient, self._num_computed = True, 0
        self.after_step()

    def _note_backward(self, parameter: torch.Tensor) -> None:
        """Backward has added to a parameter's gradient."""
        self._num_computed = len(self._open)
        if self.begin_sum is None or len(self._open) != self._num_local:
            return
        if id(parameter) in self._leaving:
            raise UserError(
                "backward() once more before optimizer.step(): with sums_during_backward the gradient is on its way "
                "already; leave that out, or add losses up first"
            )
        if not self._leaving:
            self.begin_sum(sum(batch.weight for batch in self._open) if self._is_mean else 1.0)
        self._leaving.add(id(parameter))
        self._changes = parameter.grad._version if parameter.grad is not None else 0

    def _require_untouched(self, gradient: torch.Tensor) -> None:
        if self._leaving and gradient._version != self._changes:
            raise UserError(
                "the gradient was changed after backward(): with sums_during_backward it is on its way then (as a mean "
                "over this batch); leave that out, or clip by clip_norm"
            )

    def _loss_sum(self, batches: Sequence[_Batch]) -> float:
        """Their losses are means or sums, as gradients are."""
        total = 0.0
        for batch in batches:
            if batch.loss is None:
                return UNKNOWN_LOSS
            total += float(batch.loss) * (batch.weight if self._is_mean else 1)
        return total
