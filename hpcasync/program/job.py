"""A rank's part in a training that the ranks of a program have joined: what `hpcasync.join` returns."""

import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from mpi4py import MPI
from torch.utils.data import DataLoader, IterableDataset

from hpcasync.comm.mpi import collectively, require_same
from hpcasync.comm.roles import Roles
from hpcasync.config.program import ProgramConfig
from hpcasync.deaths.policy import Deaths
from hpcasync.errors import UserError
from hpcasync.program.asynchronous import ServerPart, WorkerPart, make_engine
from hpcasync.program.attendance import Attendance
from hpcasync.program.batch_plan import BatchPlan
from hpcasync.program.dealing import Plan
from hpcasync.program.messages import Messages
from hpcasync.program.run import ProgramRun
from hpcasync.program.schedule import Schedule
from hpcasync.program.streams import StreamPlan
from hpcasync.program.synchronous import SynchronousPart
from hpcasync.program.worker import Worker
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.directory import run_directory_locked
from hpcasync.runs.run_state import RunState
from hpcasync.train.machine.resources import Resources
from hpcasync.train.modes.collectives import start_collectives
from hpcasync.train.records.timelines import open_timeline


@dataclass(frozen=True)
class Joined:
    """What all ranks have settled when they joined.

    Attributes:
        config: of the run, but for its length.
        comm: all ranks.
        roles, resources, deaths: who does what, with what, and what becomes of those that die.
        model, flat, schedule: of the program.
        resume, overwrite: what to do with a run that is there.
    """

    config: ProgramConfig
    comm: MPI.Intracomm
    roles: Roles
    resources: Resources
    deaths: Deaths
    model: torch.nn.Module
    flat: FlatParameters
    schedule: Schedule
    resume: bool | None
    overwrite: bool

    @property
    def is_server(self) -> bool:
        """Whether this rank owns parameters."""
        return self.roles.is_server(self.comm.rank)

    @property
    def is_synchronous(self) -> bool:
        """Whether all ranks make their steps together; a single one does."""
        return not self.roles.server_ranks


class _Part(Protocol):
    """What a rank does in place of the program's loop, and around it."""

    def batches(self) -> Iterator[Any]:
        """Those that fall to it."""

    def tell_scores(self, scores: dict[str, float]) -> None:
        """Have them recorded, of the version that the module has."""

    def ask_to_stop(self) -> None:
        """The program has had enough."""

    def end(self) -> int:
        """The loop is over; returns the job's exit code."""


@dataclass
class _Held:
    """What an epoch's loop leaves to the next: its first batch."""

    batches: list[Any] = field(default_factory=list)
    is_over: bool = False


class Job:
    """A rank's part in a job.

    Attributes:
        rank: of this process among all of the job.
        is_server: whether it owns parameters; `share` gives it no batches then.
        num_workers: ranks that compute gradients.
        is_first: whether it is the first worker, which speaks for all: prints a score, writes a file.
        device: that its module is on.
    """

    def __init__(self, joined: Joined, worker: Worker) -> None:
        self._joined = joined
        self._worker = worker
        self._part: _Part | None = None
        self._attendance = Attendance(joined.comm, joined.roles)
        self._validated = 0
        self._has_shared = False
        self.rank = joined.comm.rank
        self.is_server = joined.is_server
        self.num_workers = len(joined.roles.worker_ranks)
        self.is_first = self.rank == joined.roles.worker_ranks[0]
        self.device = joined.flat.parameters.device

    @property
    def version(self) -> int:
        """Number of updates in the parameters that this rank's module has, while it trains."""
        return self._worker.version

    def share(
        self, loader: "DataLoader[Any]", epochs: int = 0, *, updates: int = 0, seconds: float = 0.0
    ) -> Iterator[Any]:
        """The batches that fall to this rank, in place of the loader's own order. All ranks call it, once.

        Every sample comes once in an epoch, to whichever worker is free. A server has no batches: it serves until
        training ends; then its loop is over. After the loop every rank's module has the last version. A `break` ends
        training for all ranks, and so does a program that ends in the loop.

        Args:
            loader: gives dataset, batches of indices, collate_fn, worker processes and pinning. Of an IterableDataset
                every worker reads all, or the part that its `set_worker` is told of (`program.streams`).
            epochs: passes over the dataset.
            updates: optimizer steps.
            seconds: training time. Training ends at the first of the three; 0: no limit.

        Raises:
            UserError: on every rank, for anything that a user can cause.
            SystemExit: training was stopped by a signal (code 85), or has diverged (86): the program ends here.
        """
        given = {key: limit for key, limit in (("epochs", epochs), ("updates", updates), ("seconds", seconds)) if limit}
        stream = self._share(loader, given)
        self._attendance.begins(stream)
        return stream

    def _share(self, loader: "DataLoader[Any]", given: dict[str, float]) -> Generator[Any, None, None]:
        if self._has_shared:
            raise UserError("job.share() a second time: a job trains once; give it the number of epochs")
        self._has_shared = True
        joined = self._joined
        config = joined.config.model_copy(update={"stop": joined.config.stop.model_copy(update=given)})
        stop = config.stop
        if not any((stop.epochs, stop.updates, stop.seconds, stop.tokens)):
            raise UserError("job.share() would never end: give epochs, updates or seconds", everywhere=True)
        self._attendance.come()
        with joined.deaths.explained(), ExitStack() as stack:
            run = self._open_run(config, loader, stack)
            messages = Messages(joined.comm, run.roles.coordinator_rank, self.num_workers - joined.is_synchronous)
            self._part = part = self._begin(run, messages)
            try:
                yield from part.batches()
            except GeneratorExit:
                self._worker.discard()
                part.ask_to_stop()
            exit_code = part.end()
            messages.free()
            self._worker.timeline.close()
        self._attendance.end()
        joined.deaths.ended(exit_code)
        if exit_code:
            sys.exit(exit_code)

    def epochs(self, loader: "DataLoader[Any]", number: int) -> Iterator[Iterator[Any]]:
        """`share`, cut where this rank's steps go from one epoch to the next: for programs with a loop in a loop.

            for batches in job.epochs(loader, 10):  # for epoch in range(10):
                for batch in batches:               #     for batch in loader:

        Workers do not wait for each other where an epoch ends. With `accumulate` a step's batches are in one epoch's
        loop, the last of which may come from the next epoch. A server goes through the outer loop once.
        """
        stream, held = self.share(loader, number), _Held()
        for epoch in range(number):
            yield self._one_epoch(stream, epoch, held)
            if held.is_over:
                return
        for _ in stream:
            self._worker.discard()  # left by the program in the loop within

    def loader(self, loader: "DataLoader[Any]", epochs: int) -> "SharedLoader":
        """`share` for a framework that has the loop itself, and goes through a loader once (examples/trainer.py)."""
        return SharedLoader(self, loader, epochs)

    def _one_epoch(self, stream: Iterator[Any], epoch: int, held: "_Held") -> Iterator[Any]:
        while not held.is_over:
            if not held.batches:
                try:
                    held.batches.append(next(stream))
                except StopIteration:
                    held.is_over = True
                    return
            if self._worker.epoch > epoch and self._worker.num_open == 1:
                return
            yield held.batches.pop()

    def weigh(self, weight: int) -> None:
        """Say what the newest batch weighs in its update, where that is not its number of samples: its tokens, say."""
        self._worker.weigh(weight)

    def log(self, loss: float | torch.Tensor) -> None:
        """Say the newest batch's loss, for the records; on a GPU nothing waits for it here.

        With it the run ends where it is not finite, or runs away (`stop.diverged`).
        """
        self._worker.note_loss(loss)

    def should_validate(self, every: int) -> bool:
        """Whether to validate now: on the first worker, when its module has passed a multiple of `every` updates.

        The module has one version of all parameters, until the next `optimizer.step()`. Nobody waits, but in mode sync.
        """
        is_due = self.is_first and self.version // every > self._validated // every
        if is_due:
            self._validated = self.version
        return is_due

    def record(self, **scores: float) -> None:
        """Put scores of the module's version into the run's records (metrics.jsonl, TensorBoard)."""
        if self._part is not None:
            self._part.tell_scores({name: float(score) for name, score in scores.items()})

    def _open_run(self, config: ProgramConfig, loader: "DataLoader[Any]", stack: ExitStack) -> ProgramRun:
        joined, comm = self._joined, self._joined.comm
        plan = collectively(comm, lambda: self._plan(config, loader))
        require_same(comm, config.digest, "what join and share were given")
        require_same(comm, plan.digest, "the order of the batches")
        if config.schedule_per != "update":
            pushes = config.pushes_per_update(len(joined.roles.worker_ranks))
            joined.schedule.batches_per_update = pushes * config.accumulate.local
        if config.schedule_per == "epoch":
            joined.schedule.batches_per_step = plan.num_batches()
        run = ProgramRun(
            config, comm, joined.roles, joined.resources, joined.model, joined.flat, joined.schedule, plan,
            RunState.new(config),
        )  # fmt: skip
        locked = run_directory_locked(config, must_exist=joined.resume is True)
        collectively(comm, lambda: stack.enter_context(locked) if run.is_coordinator else None)
        run.open(resume=joined.resume, overwrite=joined.overwrite)
        counters = run.state.counters
        if config.schedule_per != "update":
            joined.schedule.go_on(counters.num_updates, counters.num_batches)
        self._validated = counters.num_updates
        return run

    def _plan(self, config: ProgramConfig, loader: "DataLoader[Any]") -> Plan:
        if loader.batch_size is None and loader.batch_sampler is None:
            raise UserError("job.share needs a DataLoader with batches: give it batch_size or a batch_sampler")
        if not isinstance(loader.dataset, IterableDataset):
            return BatchPlan(loader, config.seed)
        if config.schedule_per == "epoch":
            raise UserError("schedule_per=epoch: nobody knows how long a stream's epoch is; step per batch or update")
        workers = self._joined.roles.worker_ranks
        worker = None if self.is_server else workers.index(self.rank)
        return StreamPlan(loader, config.seed, config.stop.epochs, worker, len(workers))

    def _begin(self, run: ProgramRun, messages: Messages) -> _Part:
        joined, comm = self._joined, self._joined.comm
        timeline = collectively(comm, lambda: open_timeline(run.config, run.roles, comm.rank))
        self._worker.timeline = timeline
        straggler = run.config.straggler
        if not self.is_server and run.roles.worker_ranks.index(comm.rank) == straggler.worker:
            self._worker.slowdown = straggler.slowdown
        if joined.is_synchronous:
            collectives = start_collectives(run.config, comm, joined.resources.device)
            return SynchronousPart(run, collectives, self._worker, timeline, messages)
        engine = make_engine(run, joined.deaths, timeline)
        if engine.is_server:
            return ServerPart(engine, run, joined.deaths, messages)
        return WorkerPart(engine, run, self._worker, timeline, messages)


class SharedLoader:
    """What a framework takes for a DataLoader: this rank's batches of all epochs, in one go.

    Its length is that of all ranks' batches together: how many fall to this one is not known before.
    """

    def __init__(self, job: Job, loader: "DataLoader[Any]", epochs: int) -> None:
        self._job = job
        self._loader = loader
        self._epochs = epochs
        self.dataset = loader.dataset
        self.batch_size = loader.batch_size

    def __len__(self) -> int:
        return len(self._loader) * self._epochs

    def __iter__(self) -> Iterator[Any]:
        return self._job.share(self._loader, self._epochs)
