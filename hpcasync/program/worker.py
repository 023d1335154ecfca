"""A program's steps as a worker's: batches that it is dealt, gradients that it pushes, versions that it pulls."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from hpcasync.config.program import ProgramConfig
from hpcasync.errors import UserError
from hpcasync.program.batch_plan import BatchPlan, Tickets, dealt_out
from hpcasync.program.moving import moved_to
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.ps.worker.push_checks import is_finite
from hpcasync.runs.run_state import UNKNOWN_LOSS
from hpcasync.timeline import Timeline
from hpcasync.train.loop.exchange import Contribution

_NOTHING = object()


class VersionedExchange(Protocol):
    """What a mode is to a worker (`train.loop.exchange.Exchange`), with the version that it has pulled."""

    @property
    def is_finished(self) -> bool:
        """Whether training has ended."""

    @property
    def version(self) -> int:
        """Of the parameters that it computes with."""

    def push(self, gradient: torch.Tensor, contribution: Contribution) -> None:
        """Give a gradient away."""

    def pull(self, parameters: torch.Tensor) -> None:
        """Bring parameters up to date."""


class Worker:
    """Deals batches to the program, and does what its `optimizer.step()` stands for.

    Args:
        config: of the run.
        flat: the module's parameters and gradient.
        is_synchronous: all workers make their steps together.

    Attributes:
        timeline: records the computation.
        slowdown: how many times as long each computation is made to take, for experiments.
        after_step: called after every step.
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
        self._exchange: VersionedExchange | None = None
        self._open: list[int] = []
        self._weights: list[int] = []
        self._num_samples = 0
        self._losses: list[float | torch.Tensor | None] = []
        self._has_old_gradient = False
        self._started = 0.0

    @property
    def version(self) -> int:
        """Number of updates in the parameters that the module has."""
        return 0 if self._exchange is None else self._exchange.version

    @property
    def num_open(self) -> int:
        """Batches given to the program since the last step."""
        return len(self._open)

    def batches(
        self, loader: "DataLoader[Any]", plan: BatchPlan, draw: Callable[[], int | None], exchange: VersionedExchange
    ) -> Iterator[Any]:
        """The batches of tickets, on the module's device, until there are none or training has ended."""
        self._exchange = exchange
        device = self._flat.parameters.device
        exchange.pull(self._flat.parameters)
        self.zero_grad()
        tickets = Tickets(plan, draw)
        batches = iter(dealt_out(loader, tickets))
        while not exchange.is_finished and (batch := next(batches, _NOTHING)) is not _NOTHING:
            ticket, num_samples = tickets.next()
            self.epoch, _ = plan.locate(ticket)
            self._open.append(ticket)
            self._weights.append(num_samples)
            self._num_samples += num_samples
            self._losses.append(None)
            if len(self._open) == 1:
                self._started = time.perf_counter()
            yield moved_to(device, batch)

    def discard(self) -> None:
        """The program has left its loop: what it had of the newest batches is not pushed."""
        self._open.clear()
        self._weights.clear()
        self._losses.clear()
        self._num_samples = 0

    def end(self) -> None:
        """There are no more batches for this worker, or the program wants none."""
        exchange = self._exchange
        assert exchange is not None
        if self._open and not self._has_old_gradient and not exchange.is_finished:
            self._push()  # the program had gathered less than a step's batches: they count all the same
        # Others may have batches left: in sync all have to take part.
        while self._is_synchronous and not exchange.is_finished:
            self._flat.gradient.zero_()
            exchange.push(self._flat.gradient, Contribution((), 0, 0, 0.0, 0.0))

    def weigh(self, weight: int) -> None:
        """What the newest batch weighs, in place of its samples.

        Raises:
            UserError: there is no batch, or the weight is no positive number.
        """
        if not self._open:
            raise UserError("job.weigh() before the first batch of job.share()")
        if weight <= 0 or weight != int(weight):
            raise UserError(f"job.weigh({weight}): give the number of terms that the batch's loss is a mean or sum of")
        self._weights[-1] = int(weight)

    def note_loss(self, loss: float | torch.Tensor) -> None:
        """The newest batch's loss; read when it is pushed.

        Raises:
            UserError: there is no batch that has not been pushed.
        """
        if not self._losses:
            raise UserError("job.log() without a batch: call it before optimizer.step()")
        self._losses[-1] = loss.detach() if isinstance(loss, torch.Tensor) else float(loss)

    def zero_grad(self) -> None:
        """Begin a new gradient."""
        self._flat.gradient.zero_()
        self._has_old_gradient = False

    def step(self) -> None:
        """Push the gradient of all batches since the last step, wait as configured, and pull.

        Raises:
            UserError: there is no such batch, there are too many, or the gradient before is still in this one.
        """
        if self._exchange is None or not self._open:
            raise UserError("optimizer.step() without a batch of job.share() since the last one")
        if self._has_old_gradient:
            raise UserError("optimizer.step() without optimizer.zero_grad() since the last one")
        num_batches, expected = len(self._open), self._num_local
        if num_batches > expected or (self._is_synchronous and num_batches != expected):
            raise UserError(
                f"optimizer.step() after {num_batches} batch(es), and accumulate.local is {expected}: say "
                f"hpcasync.join(…, accumulate={num_batches}), or make a step after every {expected}; none is left out, "
                "as a gradient that is not finite is dropped here anyway"
            )
        self._push()

    def _push(self) -> None:
        assert self._exchange is not None
        gradient, weight = self._flat.gradient, sum(self._weights)
        is_sound = is_finite(gradient)
        now = time.perf_counter()
        seconds = now - self._started
        self.timeline.add("compute", self._started, seconds, tokens=[weight])
        time.sleep((self.slowdown - 1) * seconds)
        if self._is_mean and is_sound:
            gradient.mul_(weight)
        contribution = Contribution(
            tuple(self._open), weight if is_sound else 0, self._num_samples, self._loss_sum(), seconds
        )
        self._open.clear()
        self._exchange.push(gradient, contribution)
        self._exchange.pull(self._flat.parameters)
        self._weights.clear()
        self._losses.clear()
        self._num_samples = 0
        self._has_old_gradient = True
        self.after_step()

    def _loss_sum(self) -> float:
        """Of all batches since the last step; their losses are means or sums, as gradients are."""
        total = 0.0
        for loss, weight in zip(self._losses, self._weights, strict=True):
            if loss is None:
                return UNKNOWN_LOSS
            total += float(loss) * (weight if self._is_mean else 1)
        return total
