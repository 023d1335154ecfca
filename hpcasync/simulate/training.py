"""A training run inside a simulated cluster: real batches, gradients, optimizer steps and run directory."""

from typing import Any

import torch

from hpcasync.comm.shards import Shard
from hpcasync.config import Config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.nmt.model import TranslationModel
from hpcasync.ps.flat import FlatParameters
from hpcasync.ps.observer import SaveRequest
from hpcasync.ps.record import PushRecord
from hpcasync.ps.shard_state import clip_factor
from hpcasync.ps.state import Update
from hpcasync.simulate.server import SimulatedServer
from hpcasync.simulate.workload import target_tokens
from hpcasync.train.asynchronous import CoordinatorObserver
from hpcasync.train.checkpoints import ShardWriter
from hpcasync.train.step import GradientStep
from hpcasync.train.supervisor import Supervisor


class Training:
    """A program (`simulate.program`) that trains: every class that computes is the one of a real run.

    Args:
        config: of the run.
        corpus, plan: the batches.
        model: computes the gradients of all workers, one after the other.
        flat: its parameters; overwritten for every gradient.
        shards: of the servers; one of the whole vector in sync.
        supervisor: counts, logs, saves and decides; its clock is the virtual one.
        writer: the supervisor's.
        num_workers: of the cluster.
    """

    def __init__(
        self,
        config: Config,
        corpus: PreparedCorpus,
        plan: BatchPlan,
        model: TranslationModel,
        flat: FlatParameters,
        shards: list[Shard],
        supervisor: Supervisor,
        writer: ShardWriter,
        num_workers: int,
    ) -> None:
        self._config = config
        self._corpus = corpus
        self._plan = plan
        self._flat = flat
        self._supervisor = supervisor
        self._observer = CoordinatorObserver(supervisor)
        self._writer = writer
        # The servers' own parameters: those of the model are whatever a worker computes with.
        vector = flat.parameters.detach().to("cpu", copy=True)
        self._servers = [SimulatedServer(config, vector, shard, num_workers) for shard in shards]
        # Reduced precision keeps a scale for each worker.
        self._steps = [GradientStep(config, model, flat, plan) for _ in range(num_workers)]
        self._published = self._assemble()
        self._learning_rate = 0.0

    @property
    def parameters(self) -> torch.Tensor:
        """The newest version as workers get it, [num_elements] float32 on the CPU."""
        return self._published

    def ticket(self, number: int) -> int | None:
        """As the workers' exchanges do it."""
        is_over = self._config.stop.epochs and self._plan.locate(number)[0] >= self._config.stop.epochs
        return None if is_over else number

    def num_tokens(self, ticket: int) -> int:
        """From the lengths of the corpus."""
        return target_tokens(self._corpus, self._plan, ticket)

    def gradient(
        self, worker: int, version: int, parameters: Any, tickets: tuple[int, ...], compute_seconds: float
    ) -> PushRecord:
        """Forward and backward passes with the parameters that the worker had; into its slots at the servers."""
        self._flat.parameters.copy_(parameters)
        remaining = iter(tickets)
        contribution = self._steps[worker].run(lambda: next(remaining, None))
        if contribution.target_tokens:
            gradient = self._flat.gradient.to("cpu")
            for server in self._servers:
                server.write(worker, gradient)
        return PushRecord(
            version,
            contribution.target_tokens,
            contribution.loss_sum,
            contribution.source_tokens,
            compute_seconds,
            contribution.tickets,
        )

    def accumulate(self, record: PushRecord) -> None:
        """As servers do it, each on its shard."""
        for server in self._servers:
            server.accumulate(record)

    def apply(self, update: Update) -> None:
        """As servers do it, each on its shard."""
        self._learning_rate = self._observer.learning_rate(update) * update.rate_factor
        scale = 1.0 / max(1, update.num_tokens)
        clip_norm = self._config.optimizer.clip_norm
        if clip_norm:
            squared = sum(server.squared_norm() for server in self._servers)
            scale *= clip_factor(scale * squared**0.5, clip_norm)
        for server in self._servers:
            server.apply(update.version, scale=scale, learning_rate=self._learning_rate)
        self._published = self._assemble()

    def after_update(self, update: Update, now: float) -> None:
        """Count, log and save."""
        request = self._observer.after_update(update, self._learning_rate)
        if request is not None:
            self.save(request)

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        """As the coordinator does it."""
        self._observer.after_drop(record, is_stale=is_stale)

    def should_stop(self) -> bool:
        """By the configuration."""
        self._supervisor.collect_shards()
        return self._supervisor.should_stop()

    def save(self, request: SaveRequest) -> None:
        """Save the newest version as a snapshot, a checkpoint, or both."""
        if request.checkpoint:
            for index, server in enumerate(self._servers):
                self._writer.save_shard(request.name, index, server.shard, server.state.state_tensors())
        if request.snapshot:
            self._supervisor.save_snapshot(request, torch.cat([server.averaged for server in self._servers]))

    def _assemble(self) -> torch.Tensor:
        return torch.cat([server.published() for server in self._servers])
