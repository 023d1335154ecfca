"""A program's run directory: begun, or found again; and what watches the run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI

from hpcasync.comm.mpi import collectively, library_name, thread_level
from hpcasync.comm.roles import Roles
from hpcasync.comm.shards import Shard
from hpcasync.config.program import ProgramConfig
from hpcasync.errors import UserError
from hpcasync.program.buffer_means import load_into
from hpcasync.program.dealing import Plan
from hpcasync.program.schedule import Schedule
from hpcasync.ps.server.kernel_library import describe_updates
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.checkpoints import ShardWriter, read_shard
from hpcasync.runs.directory import create_run_directory, find_checkpoint_of, read_run_state, save_configuration
from hpcasync.runs.files import list_complete, read_state
from hpcasync.runs.run_state import RunState
from hpcasync.train.loop.batch_order import TicketOrder
from hpcasync.train.machine.resources import Resources
from hpcasync.train.records.console import Console
from hpcasync.train.records.recorder import Recorder
from hpcasync.train.records.summary import make_summary
from hpcasync.train.records.trackers import trackers_of
from hpcasync.train.records.versions import collect_versions
from hpcasync.train.supervise.stopping import StopRules
from hpcasync.train.supervise.supervisor import Supervisor

BUFFERS_KEY = "buffers"


@dataclass
class ProgramRun:
    """What every rank knows of the run.

    Attributes:
        config, comm, roles, resources, model, flat, schedule: of the job.
        plan: the batches.
        state: where the run stands.
        checkpoint: that it goes on from; None: it begins.
    """

    config: ProgramConfig
    comm: MPI.Intracomm
    roles: Roles
    resources: Resources
    model: torch.nn.Module
    flat: FlatParameters
    schedule: Schedule
    plan: Plan
    state: RunState
    checkpoint: Path | None = None
    num_checkpoint_shards: int = 0

    @property
    def is_coordinator(self) -> bool:
        """Whether this rank counts, logs, saves and decides."""
        return self.comm.rank == self.roles.coordinator_rank

    @property
    def layout(self) -> dict[str, str]:
        """What a resumed run must share with the one before it."""
        return {"model": self.flat.digest, "order of batches": self.plan.digest}

    @property
    def order(self) -> TicketOrder:
        """What a number that is drawn stands for."""
        return self.plan.order(self.state.ledger, self.config.stop.epochs)

    def open(self, *, resume: bool | None, overwrite: bool) -> None:
        """Find the checkpoint to go on from, or make the directory (collective).

        Args:
            resume: go on from the newest checkpoint; None: if there is one.
            overwrite: remove what is there.

        Raises:
            UserError: on every rank.
        """
        comm, config = self.comm, self.config
        if self.is_coordinator and resume is None:
            resume = bool(list_complete(config.output_dir / "checkpoints")) and not overwrite
            # What has no checkpoint has nothing to lose but its beginning: a job that is started again begins again.
            overwrite = overwrite or not resume
        collectively(comm, lambda: self._on_coordinator(lambda: self._find(bool(resume))))
        self.checkpoint = comm.bcast(self.checkpoint, root=self.roles.coordinator_rank)
        collectively(comm, self._read if self.checkpoint is not None else self._nothing)
        if self.checkpoint is None:
            collectively(
                comm,
                lambda: self._on_coordinator(lambda: create_run_directory(config, (), overwrite=overwrite)),
            )
        else:
            collectively(comm, lambda: self._on_coordinator(lambda: save_configuration(config)))

    def read_shard(self, shard: Shard) -> dict[str, torch.Tensor] | None:
        """The tensors of a shard that the run goes on with; None: it begins."""
        if self.checkpoint is None:
            return None
        return read_shard(self.checkpoint, self.num_checkpoint_shards, shard)

    def supervise(self, writer: ShardWriter, num_shards: int) -> Supervisor:
        """Open the records, say what begins, and watch it; at the coordinator."""
        config, num_batches = self.config, self.plan.num_batches()
        console = Console(config.stop, num_batches, ("samples", "samples"))
        recorder = Recorder(
            config.output_dir,
            console,
            every=config.logging.every,
            trackers=trackers_of(config, console.line),
            batches_per_epoch=num_batches,
        )
        for line in self._header():
            recorder.say(line)
        if self.checkpoint is not None:
            recorder.note(f"resuming from {self.checkpoint}")
            if ending := self._ending():
                recorder.note(
                    f"this run was at its end ({ending}): nothing is left to train; give it more, or give another run, "
                    "or overwrite=True"
                )
        recorder.event(
            "start",
            configuration=config.to_dict(),
            versions=collect_versions(),
            roles=self.roles.describe(),
            workers=len(self.roles.worker_ranks),
        )
        return Supervisor(
            config,
            lambda counters: self.schedule.rate(counters.num_updates),
            self.flat,
            num_shards,
            writer,
            recorder,
            self.state,
            self.layout,
        )

    def give_final(self, vector: torch.Tensor | None, exit_code: int) -> None:
        """Bring the last version, which the coordinator has, to every rank's module, unless the run goes on later."""
        if exit_code:
            return
        if vector is None:
            vector = torch.empty(self.flat.num_elements)
        self.comm.Bcast(vector.numpy(), root=self.roles.coordinator_rank)
        self.flat.parameters.copy_(vector)

    def end(self, supervisor: Supervisor) -> None:
        """Wait for what is being saved, and tell what came out."""
        supervisor.finish()
        summary = make_summary(
            self.config,
            self.roles,
            supervisor.counters,
            self.state.counts,
            collect_versions(),
            stop_reason=supervisor.stop_reason,
            exit_code=supervisor.exit_code,
            num_parameters=self.flat.num_trainable,
        )
        supervisor.report_end(summary)

    def _header(self) -> list[str]:
        config, roles = self.config, self.roles
        pushes = config.pushes_per_update(len(roles.worker_ranks))
        alone = " (one rank: plain training)" if self.comm.size == 1 else ""
        return [
            f"{config.name}: mode {config.mode}{alone}, seed {config.seed}, configuration {config.digest}",
            f"  run directory: {config.output_dir}",
            *(f"  {line}" for line in [*roles.describe(), *self.resources.lines]),
            f"  MPI: {library_name()}, {thread_level()}; {self.resources.worker_threads} thread(s) per worker",
            f"  model: {type(self.model).__name__}, {self.flat.num_trainable:,} parameters on "
            f"{self.flat.parameters.device.type}; updates on CPU: {describe_updates()}",
            f"  {self.plan.describe()}; {pushes * config.accumulate.local} batches per update",
        ]

    def _find(self, resume: bool) -> None:
        self.checkpoint = find_checkpoint_of(self.config, resume=resume, resume_from=None)

    def _read(self) -> None:
        assert self.checkpoint is not None
        self.state, self.num_checkpoint_shards = read_run_state(
            self.checkpoint, self.layout, self.config.validation.metric
        )
        state = read_state(self.checkpoint)
        mode, ending = state.get("mode", self.config.mode), self._ending()
        if ending and mode != self.config.mode:
            raise UserError(
                f"{self.config.output_dir} was trained to its end ({ending}) in mode {mode}: nothing is left to train "
                f"in mode {self.config.mode}; give another run, or overwrite=True"
            )
        buffers: dict[str, Any] = state.get(BUFFERS_KEY, {})
        load_into(self.model, buffers, str(self.checkpoint))

    def _ending(self) -> str:
        """Why there is nothing left to train; empty: there is, or nobody knows."""
        stop, rules = self.config.stop, StopRules(self.config.stop)
        rules.check_counters(self.state.counters)
        rules.check_time(self.state.counters.wall_seconds)
        end = stop.epochs * self.plan.num_batches()
        if rules.ending is None and end and self.state.ledger.low >= end:
            return f"{stop.epochs} epochs"
        return "" if rules.ending is None else rules.ending.reason

    def _on_coordinator(self, action: Callable[[], object]) -> None:
        if self.is_coordinator:
            action()

    @staticmethod
    def _nothing() -> None:
        """There is no checkpoint to read."""
