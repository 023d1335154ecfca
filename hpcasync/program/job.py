"""A rank's part in a training that the ranks of a program have joined: what `hpcasync.join` returns."""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from hpcasync.comm.mpi import collectively, require_same
from hpcasync.config.program import ProgramConfig
from hpcasync.errors import UserError
from hpcasync.program.arguments import as_number, require_loader
from hpcasync.program.asynchronous import ProgramServer, ProgramWorker
from hpcasync.program.attendance import Attendance
from hpcasync.program.batch_plan import BatchPlan
from hpcasync.program.dealing import Plan
from hpcasync.program.final import ProgramPart
from hpcasync.program.messages import Messages
from hpcasync.program.schedule import Schedule
from hpcasync.program.streams import StreamPlan
from hpcasync.program.synchronous import ProgramSynchronous
from hpcasync.program.task import ProgramTask
from hpcasync.program.worker import Worker
from hpcasync.ps.engine import Engine
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.train.parts import begin
from hpcasync.train.ranks import Ranks
from hpcasync.train.run import Run
from hpcasync.train.supervise import stop_signals


@dataclass(frozen=True)
class Joined:
    """What all ranks have settled when they joined.

    Attributes:
        config: of the run, but for its length.
        ranks: of the job.
        model, flat, schedule: of the program.
        resume, overwrite: what to do with a run that is there.
    """

    config: ProgramConfig
    ranks: Ranks
    model: torch.nn.Module
    flat: FlatParameters
    schedule: Schedule
    resume: bool | None
    overwrite: bool


@dataclass
class _Held:
    """What an epoch's loop leaves to the next: its first batch."""

    batches: list[Any] = field(default_factory=list)
    is_over: bool = False


# Comes after the last batch, where the run is to stay open until the program asks for another one.
_NO_MORE = object()


class Job:
    """A rank's part in a job.

    Attributes:
        rank: of this process among all of the job.
        is_server: whether it owns parameters; `share` gives it no batches then.
        num_workers: ranks that compute gradients.
        device: that its module is on.
    """

    def __init__(self, joined: Joined, worker: Worker) -> None:
        self._joined = joined
        self._worker = worker
        self._messages: Messages | None = None
        self._attendance = Attendance(joined.ranks.comm, joined.ranks.roles)
        self._validated = 0
        self._has_shared = False
        self._last_version: int | None = None
        self.rank = joined.ranks.comm.rank
        self.is_server = joined.ranks.is_server
        self.num_workers = joined.ranks.num_workers
        self.device = joined.flat.parameters.device

    @property
    def is_first(self) -> bool:
        """Whether it is the first worker that lives, which speaks for all: prints a score, writes a file."""
        ranks = self._joined.ranks
        dead = ranks.deaths.dead_workers()
        return self.rank == next(
            (rank for worker, rank in enumerate(ranks.roles.worker_ranks) if worker not in dead), -1
        )

    @property
    def has_trained(self) -> bool:
        """Whether its loop is over."""
        return self._has_shared and self._messages is None

    @property
    def version(self) -> int:
        """Number of updates in the parameters that this rank's module has; of a server's once training has ended."""
        return self._worker.version if self._last_version is None else self._last_version

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
        return self._begin_stream(loader, given)

    def _begin_stream(
        self, loader: "DataLoader[Any]", given: dict[str, float], *, tells_end: bool = False
    ) -> Generator[Any, None, None]:
        stream = self._share(loader, given, tells_end=tells_end)
        self._attendance.begins(stream)
        return stream

    def _share(
        self, loader: "DataLoader[Any]", given: dict[str, float], *, tells_end: bool
    ) -> Generator[Any, None, None]:
        if self._has_shared:
            raise UserError("a second loop over the job's batches: a job trains once; give it the number of epochs")
        self._has_shared = True
        require_loader(loader)
        joined = self._joined
        config = joined.config.model_copy(update={"stop": joined.config.stop.model_copy(update=given)})
        stop = config.stop
        if not any((stop.epochs, stop.updates, stop.seconds, stop.tokens)):
            raise UserError("job.share() would never end: give epochs, updates or seconds", everywhere=True)
        self._attendance.come()
        with joined.ranks.deaths.explained():
            task = self._task(config, loader)
            run = Run(config, joined.ranks, task)
            with run.held(resume=joined.resume, overwrite=joined.overwrite):
                messages = self._messages = Messages(joined.ranks)
                part = self._begin(run, task, messages)
                part.start()
                if part.exchange is not None:
                    try:
                        yield from self._worker.batches(task.plan, part.exchange)
                    except GeneratorExit:
                        self._worker.discard()
                        messages.tell({"stop": True})
                        tells_end = False
                    if tells_end and not stop_signals.received():  # time is short then
                        with suppress(GeneratorExit):  # of a loop that is over nothing is left out
                            yield _NO_MORE
                exit_code = part.end()
                self._last_version = part.last_version
                self._messages = None
                messages.free()
                self._attendance.end()
                run.close(exit_code)
        if exit_code:
            sys.exit(exit_code)

    def epochs(self, loader: "DataLoader[Any]", number: int) -> Iterator[Iterator[Any]]:
        """`share`, cut where this rank's steps go from one epoch to the next: for programs with a loop in a loop.

            for batches in job.epochs(loader, 10):  # for epoch in range(10):
                for batch in batches:               #     for batch in loader:

        Workers do not wait for each other where an epoch ends. With `accumulate` a step's batches are in one epoch's
        loop, the last of which may come from the next epoch. A server goes through the outer loop once.
        """
        if number < 1:
            raise UserError(f"job.epochs(loader, {number}): give the number of epochs")
        stream, held = self._begin_stream(loader, {"epochs": number}, tells_end=True), _Held()
        try:
            for epoch in range(number):
                yield self._one_epoch(stream, epoch, held)
                if held.is_over:
                    break
            for _ in stream:
                self._worker.discard()  # left by the program in the loop within
        finally:
            stream.close()  # also where the program holds the loop within

    def loader(self, loader: "DataLoader[Any]", epochs: int) -> "SharedLoader":
        """`share` for a framework that has the loop itself, and goes through a loader once (examples/trainer.py)."""
        return SharedLoader(self, loader, epochs)

    def _one_epoch(self, stream: Iterator[Any], epoch: int, held: "_Held") -> Iterator[Any]:
        while not held.is_over:
            if not held.batches:
                batch = next(stream, _NO_MORE)
                if batch is _NO_MORE:
                    held.is_over = True
                    return
                held.batches.append(batch)
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
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            self._worker.note_loss(loss.detach())
        else:
            self._worker.note_loss(as_number("job.log(…)", loss))

    def should_validate(self, every: int) -> bool:
        """Whether to validate now: on the first worker, when its module has passed a multiple of `every` updates.

        The module has one version of all parameters, until the next `optimizer.step()`. Nobody waits, but in mode sync.
        """
        is_due = self.is_first and self.version // every > self._validated // every
        if is_due:
            self._validated = self.version
        return is_due

    def record(self, **scores: float | torch.Tensor) -> None:
        """Put scores of the module's version into the run's records (metrics.jsonl, TensorBoard), within the loop."""
        if self._messages is None:
            raise UserError("job.record() outside of the job's loop: the run's records are closed there")
        told = {name: as_number(f"job.record({name}=…)", score) for name, score in scores.items()}
        self._messages.tell({"version": self.version, "scores": told})

    def _task(self, config: ProgramConfig, loader: "DataLoader[Any]") -> ProgramTask:
        """What is trained, the same on all ranks (collective)."""
        joined, comm = self._joined, self._joined.ranks.comm
        plan = collectively(comm, lambda: self._plan(config, loader))
        require_same(comm, config.digest, "what join and share were given")
        require_same(comm, plan.digest, "the order of the batches")
        if config.schedule_per != "update":
            joined.schedule.batches_per_update = config.pushes_per_update(self.num_workers) * config.accumulate.local
        if config.schedule_per == "step":
            joined.schedule.batches_per_step = config.accumulate.local
        if config.schedule_per == "epoch":
            joined.schedule.batches_per_step = plan.num_batches()
        joined.schedule.begin()
        return ProgramTask(config, joined.model, joined.flat, joined.schedule, plan)

    def _plan(self, config: ProgramConfig, loader: "DataLoader[Any]") -> Plan:
        if not isinstance(loader.dataset, IterableDataset):
            return BatchPlan(loader, config.seed)
        if config.schedule_per == "epoch":
            raise UserError("schedule_per=epoch: nobody knows how long a stream's epoch is; say step, batch or update")
        ranks = self._joined.ranks
        if ranks.deaths.may_lose_workers:
            raise UserError(
                "a stream (IterableDataset) has no batches that others could do for a worker that dies: leave "
                "--survive-workers out, or give a dataset with __len__ and __getitem__"
            )
        worker = None if self.is_server else ranks.worker
        return StreamPlan(loader, config.seed, config.stop.epochs, worker, ranks.num_workers)

    def _begin(self, run: Run, task: ProgramTask, messages: Messages) -> ProgramPart:
        self._validated = run.state.counters.num_updates
        worker = self._worker
        server: Callable[[Run, Engine], ProgramPart] = partial(ProgramServer, task=task, messages=messages)
        part = begin(
            run,
            server,
            partial(ProgramWorker, task=task, messages=messages, worker=worker),
            partial(ProgramSynchronous, task=task, messages=messages, worker=worker),
        )
        if part.exchange is not None:
            worker.timeline, worker.slowdown = run.timeline, run.slowdown
        return part


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
