"""A run on all ranks, whatever it trains: its directory, begun or found again, its records, and its end."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from hpcasync.comm.mpi import collectively
from hpcasync.comm.shards import Shard
from hpcasync.complete_files import list_complete
from hpcasync.config.schema import RunConfig
from hpcasync.ps.protocol.lost_work import LostWork
from hpcasync.ps.protocol.lost_workers import LostWorkers
from hpcasync.ps.server.parameter_groups import Optimizers
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.checkpoints import ShardWriter, read_shard
from hpcasync.runs.counters import Counters
from hpcasync.runs.directory import (
    create_run_directory,
    find_checkpoint_of,
    read_run_state,
    run_directory_locked,
    save_configuration,
    take_over,
)
from hpcasync.runs.run_state import FreshStart, RunState
from hpcasync.timeline import Timeline
from hpcasync.train.header import header_lines
from hpcasync.train.loop.batch_order import TicketOrder
from hpcasync.train.ranks import Ranks
from hpcasync.train.records.start import begin_records
from hpcasync.train.records.timelines import open_timeline
from hpcasync.train.supervise.supervisor import Supervisor

ReadShard = Callable[[Shard], dict[str, torch.Tensor]]


class SizedPlan(Protocol):
    """Batches of data that is gone through several times."""

    def num_batches(self) -> int:
        """Of a data epoch; 0: nobody knows."""


class RunTask(Protocol):
    """What a run trains: a module's parameters in one vector, on batches."""

    @property
    def flat(self) -> FlatParameters:
        """The module's parameters and gradient."""

    @property
    def plan(self) -> SizedPlan:
        """The batches."""

    @property
    def layout(self) -> dict[str, str]:
        """What a resumed run must share with the one before it."""

    @property
    def optimizers(self) -> Optimizers:
        """What steps the parameters."""

    @property
    def rate(self) -> Callable[[Counters], float]:
        """The learning rate of the update that brings the counters to what it is given."""

    @property
    def files(self) -> Iterable[Path]:
        """What the run directory is to keep a copy of."""

    @property
    def unit(self) -> tuple[str, str]:
        """Of what is trained on, short and in full."""

    @property
    def batch_weight(self) -> int:
        """What the gradient of a batch is a sum over, at most: tokens, or samples."""

    @property
    def knows_last_backward(self) -> bool:
        """Whether `Exchange.expect_gradient` is called, and what backward makes then is the gradient that is pushed."""

    def fresh_start(self, num_workers: int) -> FreshStart:
        """Of a run that begins on so many workers."""

    def describe(self, num_workers: int, fresh_updates: int) -> Iterator[str]:
        """For the header of the run."""

    def order(self, state: RunState) -> TicketOrder:
        """What the numbers that workers draw stand for."""

    def go_on(self, checkpoint: Path, state: RunState) -> None:
        """Take up what the checkpoint holds beside parameters and the run's state."""


class Run:
    """A run of training on the ranks of a job.

    Attributes:
        state: where the run stands.
        checkpoint: that it goes on from; None: it begins.
        timeline: of this rank.
    """

    def __init__(self, config: RunConfig, ranks: Ranks, task: RunTask) -> None:
        self.config = config
        self.ranks = ranks
        self.task = task
        self.state = RunState.new(config)
        self.checkpoint: Path | None = None
        self.timeline = Timeline()
        self._num_checkpoint_shards = 0
        self._overwrites = False

    @property
    def fresh_updates(self) -> int:
        """First updates that workers wait for, as in sync."""
        return 0 if self.state.fresh_start is None else self.state.fresh_start.updates

    @property
    def slowdown(self) -> float:
        """How many times as long this worker's computations are made to take, for experiments."""
        straggler = self.config.straggler
        return straggler.slowdown if self.ranks.worker == straggler.worker else 1.0

    @contextmanager
    def held(self, *, resume: bool | None, resume_from: Path | None = None, overwrite: bool = False) -> Iterator[None]:
        """Be the only one who writes the run directory, and find out where the run stands (collective).

        Args:
            resume: go on from the newest checkpoint of the run; None: if there is one.
            resume_from: directory of another run to go on from, unless `resume` finds a checkpoint of this one.
            overwrite: remove what the run has left before, if it begins anew or from another one.

        Raises:
            UserError: on every rank.
        """
        with ExitStack() as stack:
            locked = run_directory_locked(self.config, must_exist=bool(resume) and resume_from is None)
            self._on_coordinator(lambda: stack.enter_context(locked))
            self._on_coordinator(lambda: self._find(resume, resume_from, overwrite=overwrite))
            # A run that goes on meanwhile may have a newer one when the next rank looks.
            self.checkpoint = self.ranks.comm.bcast(self.checkpoint, root=self.ranks.roles.coordinator_rank)
            collectively(self.ranks.comm, self._read_state)
            if self.config.mode != "sync":
                self.state = self.state.with_fresh_start(self.task.fresh_start(self.ranks.num_workers))
            yield

    def begin_records(self) -> None:
        """Make the run directory, unless the run goes on in it, and open this rank's timeline there (collective)."""
        if self.checkpoint is None or self.checkpoint.parent.parent != self.config.output_dir:
            self._on_coordinator(self._make_directory)
        comm = self.ranks.comm
        self.timeline = collectively(comm, lambda: open_timeline(self.config, self.ranks.roles, comm.rank))

    def load(self, load: Callable[[ReadShard], None]) -> None:
        """Have each rank read its part of the checkpoint, if there is one (collective).

        When all have, the run goes on with this configuration.
        """
        if self.checkpoint is None:
            return
        # Of another run's it is a copy, which stays while that run goes on.
        own = self.config.output_dir / "checkpoints" / self.checkpoint.name
        collectively(self.ranks.comm, lambda: load(lambda shard: read_shard(own, self._num_checkpoint_shards, shard)))
        self._on_coordinator(lambda: save_configuration(self.config))

    def shard_writer(self, num_shards: int) -> ShardWriter:
        return ShardWriter(self.config.output_dir / "checkpoints", num_shards)

    def supervise(self, writer: ShardWriter, windows: str = "") -> Supervisor:
        """Open the records, say what begins, and watch it; at the coordinator."""
        config, ranks, task = self.config, self.ranks, self.task
        recorder = begin_records(
            config,
            ranks.roles,
            header_lines(config, ranks, task.describe(ranks.num_workers, self.fresh_updates), windows),
            self.checkpoint,
            batches_per_epoch=task.plan.num_batches(),
            unit=task.unit,
            workers=ranks.num_workers,
        )
        if config.straggler.worker is not None:
            recorder.note(f"worker {config.straggler.worker} is slowed down {config.straggler.slowdown:g} times")
        return Supervisor(config, task.rate, task.flat, writer, recorder, self.state, task.layout)

    def survival(self) -> LostWorkers | None:
        """What the coordinator needs where workers may die."""
        if not self.ranks.deaths.may_lose_workers:
            return None
        num_epochs = self.config.stop.epochs
        end = num_epochs * self.task.plan.num_batches() if num_epochs else None
        work = LostWork(self.ranks.num_workers, self.state.ledger.remaining(), end)
        return LostWorkers(work, self.ranks.deaths.dead_workers)

    def close(self, exit_code: int) -> None:
        """All has been done: who dies now is not missed."""
        self.ranks.deaths.ended(exit_code)
        self.timeline.close()

    def _find(self, resume: bool | None, resume_from: Path | None, *, overwrite: bool) -> None:
        if resume is None:
            resume = bool(list_complete(self.config.output_dir / "checkpoints")) and not overwrite
            # What has no checkpoint has nothing to lose but its beginning: a job that is started again begins again.
            overwrite = not resume
        self._overwrites = overwrite
        self.checkpoint = find_checkpoint_of(self.config, resume=resume, resume_from=resume_from)

    def _read_state(self) -> None:
        if self.checkpoint is not None:
            self.state, self._num_checkpoint_shards = read_run_state(
                self.checkpoint, self.task.layout, self.config.validation.metric
            )
            self.task.go_on(self.checkpoint, self.state)

    def _make_directory(self) -> None:
        create_run_directory(self.config, self.task.files, overwrite=self._overwrites)
        if self.checkpoint is not None:
            take_over(self.checkpoint, self.config.output_dir)

    def _on_coordinator(self, action: Callable[[], object]) -> None:
        collectively(self.ranks.comm, lambda: action() if self.ranks.is_coordinator else None)
