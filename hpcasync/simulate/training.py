"""A training run inside a simulated cluster: real batches, gradients, optimizer steps and run directory."""

import weakref
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from hpcasync.comm.shards import Shard
from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.ps.protocol.orders import Order
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.tickets import TicketSequence
from hpcasync.ps.protocol.updates import Update
from hpcasync.runs.checkpoints import ShardWriter
from hpcasync.simulate.hosts import Hosts
from hpcasync.simulate.resumption import Moment, SavedSimulation, Version
from hpcasync.simulate.server import SimulatedServer
from hpcasync.train.loop.batch_order import BatchOrder
from hpcasync.train.loop.step import GradientStep
from hpcasync.train.loop.task import Task
from hpcasync.train.supervise.supervisor import Supervisor


class Training:
    """A program (`simulate.program`) that trains: every class that computes is the one of a real run.

    Args:
        task: corpus and model, which computes the gradients of all workers, one after the other.
        shards: of the servers; one of the whole vector in sync.
        supervisor: counts, logs, saves and decides; its clock is the virtual one.
        hosts: that sum what is pushed there, if they do.
    """

    def __init__(
        self,
        task: Task,
        shards: list[Shard],
        supervisor: Supervisor,
        writer: ShardWriter,
        num_workers: int,
        *,
        hosts: Hosts | None = None,
    ) -> None:
        self._config = config = task.config
        self._plan = task.plan
        self._order = BatchOrder(TicketSequence(), task.plan, config.stop.epochs)
        self._flat = flat = task.flat
        self._supervisor = supervisor
        self._writer = writer
        # The servers' own parameters: those of the model are whatever a worker computes with.
        vector = flat.parameters.detach().to("cpu", copy=True)
        nobody: list[int | None] = [None] * num_workers
        self._servers = [
            SimulatedServer(config, vector, shard, task.optimizers, nobody if hosts is None else hosts.sources(index))
            for index, shard in enumerate(shards)
        ]
        # Reduced precision keeps a scale for each worker.
        self._steps = [GradientStep(config, task.model, flat, task.plan) for _ in range(num_workers)]
        self._learning_rate = 0.0
        self._rejected: list[int] = []
        # Those that somebody still holds: workers that compute with them, pulls under way, pushes not yet taken.
        self._versions: weakref.WeakValueDictionary[int, Version] = weakref.WeakValueDictionary()
        self._published = self._new_version(0, self._assemble())
        self._moment: Moment | None = None
        self._moment = self._keep_moment()

    @property
    def parameters(self) -> Version:
        return self._published

    def ticket(self, number: int) -> int | None:
        return self._order.ticket(number)

    def num_tokens(self, ticket: int) -> int:
        return self._plan.num_target_tokens(ticket)

    def gradient(
        self, worker: int, version: int, parameters: Any, tickets: tuple[int, ...], compute_seconds: float
    ) -> PushRecord:
        """Forward and backward passes with the parameters that the worker had; into its slots at the servers."""
        assert parameters.vector is not None
        self._flat.parameters.copy_(parameters.vector)
        remaining = iter(tickets)
        record = self._steps[worker].run(lambda: next(remaining, None), version=version)
        if record.num_tokens:
            gradient = self._flat.gradient.to("cpu")
            for server in self._servers:
                server.write(worker, gradient)
        else:
            self._rejected += record.tickets
        return replace(record, compute_seconds=compute_seconds)

    def accumulate(self, worker: int, record: PushRecord) -> None:
        for server in self._servers:
            server.accumulate(worker, record)

    def exchange(self) -> None:
        for server in self._servers:
            server.exchange()

    def discard(self) -> None:
        for server in self._servers:
            server.discard()

    def apply(self, update: Update) -> None:
        config = self._config
        order = Order.to_apply(update, self._supervisor.learning_rate(update), config.staleness.lookahead)
        self._learning_rate = order.learning_rate
        squared_norm = cache(lambda: sum(server.squared_norm() for server in self._servers))
        for server in self._servers:
            server.apply(order, config.optimizer.clip_norm, squared_norm)
        self._published = self._new_version(update.version, self._assemble())

    def after_update(self, update: Update, now: float) -> None:
        request = self._supervisor.after_update(update, self._learning_rate)
        self._moment = self._keep_moment()
        if request is not None:
            self.save(request)
            if request.snapshot and self._config.stop.patience:
                self._supervisor.wait_for_scores()  # in no virtual time: the end depends on them

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        self._supervisor.after_drop(record, is_stale=is_stale)

    def should_stop(self) -> bool:
        self._supervisor.collect_shards()
        return self._supervisor.should_stop()

    def save(self, request: SaveRequest) -> None:
        if request.checkpoint:
            assert self._moment is not None
            for index, server in enumerate(self._servers):
                tensors = server.state.state_tensors() | self._moment.tensors(index, server.shard, self._rejected)
                self._writer.save_shard(request.name, index, server.shard, tensors)
        if request.snapshot:
            self._supervisor.save_snapshot(request, torch.cat([server.state.averaged for server in self._servers]))

    def skip(self, update: Update) -> None:
        """An update of an interrupted run is replayed: its parameters are put in place later, if anybody needs them."""
        self._published = self._new_version(update.version, None)

    def begin(self) -> None:
        """Start the clock of a run, or of the rest of one."""
        self._supervisor.start()
        if self._config.stop.patience:
            self._supervisor.wait_for_scores()  # of an interrupted run

    def resume(self, saved: SavedSimulation) -> None:
        """Begin at a checkpoint of the version that has been published last."""
        for index, server in enumerate(self._servers):
            server.load(saved.shards[index], saved.memory(index))
        for number, version in list(self._versions.items()):
            version.vector = self._assemble() if number == saved.version else saved.vector(number)
        self._rejected = sorted(saved.rejected())
        self._moment = self._keep_moment()
        self.begin()

    def _new_version(self, number: int, vector: torch.Tensor | None) -> Version:
        version = self._versions[number] = Version(number, vector)
        return version

    def _keep_moment(self) -> Moment:
        """The last update may turn out to be the one that is saved only when later gradients have been computed."""
        self._moment = None  # lets go of versions that nobody else holds
        older = {number: held for number, held in self._versions.items() if held is not self._published}
        return Moment(older, [server.memory() for server in self._servers])

    def _assemble(self) -> torch.Tensor:
        return torch.cat([server.published() for server in self._servers])
