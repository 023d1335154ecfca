"""A gradient summed over all workers in buckets, each as soon as backward has completed it."""

from collections.abc import Callable
from typing import Protocol

import torch
from mpi4py import MPI

from hpcasync.config.schema import SyncCompression
from hpcasync.ps.worker.buckets import SUMMED_ELEMENTS, GradientBuckets
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.train.modes.collectives import Collectives, PendingSum

_TRAVELS_AS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Waiter(Protocol):
    """Waits for something that takes all ranks (`RankWatch`)."""

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Return when `is_done`."""


class BucketSums:
    """Sums `flat.gradient` over all workers.

    Buckets are started in one order by all ranks: the one in which backward completed them at rank 0, the first time.
    How the vector is cut, and so every bit of a sum, does not depend on it.

    Args:
        during_backward: whether a bucket may leave before the whole gradient is known.
        scale: power of two that brings a sum into fp16's range; only for that.
    """

    def __init__(
        self,
        collectives: Collectives,
        flat: FlatParameters,
        comm: MPI.Intracomm,
        watch: Waiter,
        *,
        during_backward: bool = True,
        compression: SyncCompression = "none",
        scale: float = 1.0,
        bucket_elements: int = SUMMED_ELEMENTS,
    ) -> None:
        self._collectives = collectives
        self._flat = flat
        self._comm = comm
        self._watch = watch
        self._during_backward = during_backward
        self._dtype = _TRAVELS_AS.get(compression)
        self._scale = scale if self._dtype == torch.float16 else 1.0
        self._buckets = GradientBuckets(flat, bucket_elements, self._complete)
        self._order: list[int] = []
        self._completed: list[int] = []
        self._started: list[tuple[torch.Tensor, torch.Tensor, PendingSum]] = []
        self._factor = 1.0

    @property
    def rank(self) -> int:
        return self._comm.rank

    @property
    def num_workers(self) -> int:
        return self._comm.size

    @property
    def description(self) -> str:
        when = " during backward" if self._during_backward else ""
        form = "" if self._dtype is None else f", as {str(self._dtype).removeprefix('torch.')}"
        return f"{self._collectives.description}, {len(self._buckets.bounds)} bucket(s){when}{form}"

    def begin(self, factor: float = 1.0) -> None:
        """The backward pass that is about to begin completes the gradient, which is summed times a factor."""
        if self._during_backward:
            self._factor = factor
            self._buckets.arm()

    def sum(self, totals: torch.Tensor) -> None:
        """Sum the gradient, which is complete, and `totals` [n] float64 (CPU); all ranks call this in turn."""
        left = self._buckets.disarm()
        completed = list(self._completed)
        for number in left:
            self._complete(number)
        for number in [] if self._order else range(len(self._buckets.bounds)):
            self._start(number)
        pending = self._collectives.start_sum(totals, "totals")
        self._watch.wait(lambda: pending.is_done() and all(summed.is_done() for _, _, summed in self._started))
        pending.wait()
        for part, travels, summed in self._started:
            summed.wait()
            if travels is not part:
                torch.mul(travels, 1 / self._scale, out=part)
        if not self._order and self._during_backward:
            self._learn_order(completed)
        self._started.clear()
        self._completed.clear()
        self._factor = 1.0

    def sum_vector(self, vector: torch.Tensor) -> None:
        """Sum another vector beside the gradient, in place; all ranks call this in turn."""
        pending = self._collectives.start_sum(vector, "vector")
        self._watch.wait(pending.is_done)
        pending.wait()

    def _complete(self, number: int) -> None:
        self._completed.append(number)
        while len(self._started) < len(self._order) and self._order[len(self._started)] in self._completed:
            self._start(self._order[len(self._started)])

    def _start(self, number: int) -> None:
        bounds = self._buckets.bounds[number]
        part = self._flat.gradient[bounds.start : bounds.stop]
        if self._factor != 1.0:
            part.data.mul_(self._factor)  # `data`: no change of the gradient's that a program would have made
        travels = part if self._dtype is None else (part * self._scale).to(self._dtype)
        self._started.append((part, travels, self._collectives.start_sum(travels, f"gradient.{number}")))

    def _learn_order(self, completed: list[int]) -> None:
        """Of rank 0's backward pass; next time, where it had no batch."""
        completed = self._comm.bcast(completed)
        rest = [number for number in range(len(self._buckets.bounds)) if number not in completed]
        self._order = [*completed, *rest] if completed else []
