"""The synchronous baseline: Horovod allreduce of the same flat gradient vector."""

import os
from itertools import chain
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from hpcasync.comm.mpi import collectively
from hpcasync.errors import UserError
from hpcasync.ps.protocol.updates import PushCounts
from hpcasync.ps.server.shard_state import ShardState, blocks_of, clip_factor, squared_norm
from hpcasync.runs.run_state import UpdateReport
from hpcasync.timeline import Timeline
from hpcasync.train.loop.batch_order import BatchOrder
from hpcasync.train.loop.exchange import Contribution
from hpcasync.train.supervise.rank_watch import RankWatch
from hpcasync.train.supervise.supervisor import Supervisor


def start_horovod(comm: MPI.Intracomm) -> Any:
    """Start Horovod on all ranks and return its torch module.

    Raises:
        UserError: Horovod is not installed, was built without MPI, or sees another number of ranks.
    """
    hvd = collectively(comm, _import_horovod)
    # It says nothing of a rank whose whole process is stopped; `RankWatch` does.
    os.environ.setdefault("HOROVOD_STALL_CHECK_DISABLE", "1")
    hvd.init()
    if hvd.size() != comm.size:
        raise UserError(f"Horovod sees {hvd.size()} ranks and MPI {comm.size}: see `hpcasync doctor`", everywhere=True)
    return hvd


def _import_horovod() -> Any:
    try:
        import horovod.torch as hvd
    except ImportError as error:
        raise UserError(
            f"mode=sync needs Horovod, which cannot be imported ({error}); `make setup` builds it, docs/install.md "
            "says how for a cluster; every asynchronous mode works without it"
        ) from error
    if not hvd.mpi_built():
        raise UserError("this Horovod was built without MPI: rebuild it with HOROVOD_WITH_MPI=1")
    return hvd


class AllreduceExchange:
    """A worker that waits for all workers in every step. Each holds the whole optimizer state.

    Args:
        comm: all ranks.
        hvd: Horovod's torch module, started.
        state: the whole parameter vector (the model's own) with its optimizer.
        batches: their order.
        num_local: accumulate.local.
        clip_norm: of the summed gradient per token; 0 for none.
        supervisor: on world rank 0 alone.
        version: number of updates made before (resume).
        counts: of gradients; kept up to date.
        watch: names ranks that are waited for.
        timeline: records allreduces, in which workers wait for each other, and optimizer steps.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        hvd: Any,
        state: ShardState,
        batches: BatchOrder,
        supervisor: Supervisor | None,
        *,
        num_local: int,
        clip_norm: float,
        version: int,
        counts: PushCounts,
        watch: RankWatch,
        timeline: Timeline,
    ) -> None:
        self._comm = comm
        self._hvd = hvd
        self._state = state
        self._batches = batches
        self._supervisor = supervisor
        self._num_local = num_local
        self._clip_norm = clip_norm
        self._version = version
        self._num_rounds = 0
        self._num_drawn = 0
        self._is_finished = False
        self._counts = counts
        self._watch = watch
        self._timeline = timeline

    @property
    def is_finished(self) -> bool:
        """Whether rank 0 has ended training, for all."""
        return self._is_finished

    def draw(self) -> int | None:
        """This worker's next ticket of the round: workers take turns, so that a round covers consecutive tickets."""
        number = (self._num_rounds * self._num_local + self._num_drawn) * self._comm.size + self._comm.rank
        self._num_drawn += 1
        return self._batches.ticket(number)

    def expect_gradient(self) -> None:
        """Nothing: Horovod's allreduce is of the whole gradient."""

    def push(self, gradient: torch.Tensor, contribution: Contribution) -> None:
        """Sum over all workers, make the optimizer step, and hear from rank 0 whether to go on."""
        # Sums over all workers, then which of them take part: not one without batches or whose gradient was rejected.
        totals = torch.zeros(3 + self._comm.size, dtype=torch.float64)
        if contribution.target_tokens:
            totals[0], totals[1] = contribution.target_tokens, contribution.source_tokens
            totals[2], totals[3 + self._comm.rank] = contribution.loss_sum, 1
        else:
            gradient.zero_()
        with self._timeline.span("allreduce"):
            handles = [
                self._hvd.allreduce_async_(gradient, op=self._hvd.Sum, name="gradient"),
                self._hvd.allreduce_async_(totals, op=self._hvd.Sum, name="totals"),
            ]
            self._watch.wait(lambda: all(map(self._hvd.poll, handles)))
            for handle in handles:
                self._hvd.synchronize(handle)
        tickets = self._round_tickets()
        self._num_rounds += 1
        self._num_drawn = 0
        accepted = [tickets[rank] for rank in range(self._comm.size) if totals[3 + rank]]
        rejected = [tickets[rank] for rank in range(self._comm.size) if tickets[rank] and not totals[3 + rank]]
        report = UpdateReport(
            num_steps=len(accepted),
            target_tokens=int(totals[0]),
            source_tokens=int(totals[1]),
            loss_sum=float(totals[2]),
            tickets=tuple(chain.from_iterable(accepted)),
            staleness=(0,) * len(accepted),
        )
        self._reject(rejected)
        if accepted:
            with self._timeline.span("apply", version=self._version + 1):
                self._apply(gradient, report)
        should_stop = not any(tickets)
        if self._supervisor is not None:
            self._supervisor.collect_shards()
            should_stop = should_stop or self._supervisor.should_stop()
        self._is_finished = bool(self._from_first(should_stop))

    def pull(self, parameters: torch.Tensor) -> None:
        """Nothing to do: the step was made in place."""

    def _from_first(self, value: float) -> float:
        """Rank 0's value, on all ranks."""
        buffer = np.array([value], np.float64)
        request = self._comm.Ibcast(buffer, root=0)
        self._watch.wait(request.Test)
        return float(buffer[0])

    def _reject(self, rejected: list[tuple[int, ...]]) -> None:
        self._counts.num_pushed += len(rejected)
        self._counts.num_dropped += len(rejected)
        if self._supervisor is not None:
            for tickets in rejected:
                self._supervisor.skip(tickets)

    def _apply(self, gradient: torch.Tensor, report: UpdateReport) -> None:
        self._version += 1
        learning_rate = self._supervisor.learning_rate(report) if self._supervisor is not None else 0.0
        learning_rate = self._from_first(learning_rate)
        scale = 1.0 / report.target_tokens
        if self._clip_norm:
            scale *= clip_factor(scale * squared_norm(gradient) ** 0.5, self._clip_norm)
        self._state.apply(blocks_of(gradient), scale=scale, learning_rate=learning_rate, version=self._version)
        self._counts.num_pushed += report.num_steps
        self._counts.num_applied += report.num_steps
        self._counts.staleness[0] += report.num_steps
        if self._supervisor is not None:
            request = self._supervisor.after_update(report, learning_rate)
            if request is not None:
                self._supervisor.save_all(request, self._state)

    def _round_tickets(self) -> list[tuple[int, ...]]:
        """The tickets that each worker has drawn in this round."""
        per_round = self._num_local * self._comm.size
        first = self._num_rounds * per_round
        return [
            tuple(
                ticket
                for number in range(first + rank, first + per_round, self._comm.size)
                if (ticket := self._batches.ticket(number)) is not None
            )
            for rank in range(self._comm.size)
        ]
