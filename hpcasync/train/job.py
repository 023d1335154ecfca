"""A training job on all ranks: set up together, then each rank in its role."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mpi4py import MPI

from hpcasync.comm.mpi import collectively, require_same, require_threads
from hpcasync.comm.roles import Roles
from hpcasync.comm.shards import Shard
from hpcasync.comm.waiting import wait_for_all
from hpcasync.config.schema import Config
from hpcasync.deaths.policy import Deaths
from hpcasync.ps.engine import Engine
from hpcasync.ps.protocol.lost_work import LostWork
from hpcasync.ps.protocol.lost_workers import LostWorkers
from hpcasync.ps.server.kernel_library import describe_updates
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.runs.checkpoints import ShardWriter, read_shard
from hpcasync.runs.directory import (
    create_run_directory,
    find_checkpoint_of,
    read_run_state,
    run_directory_locked,
    save_configuration,
    take_over,
)
from hpcasync.runs.run_state import RunState
from hpcasync.slurm.environment import allocated_cpus, check_world_size
from hpcasync.timeline import Timeline
from hpcasync.train.engine_options import engine_options
from hpcasync.train.header import header_lines
from hpcasync.train.loop.batch_order import BatchOrder
from hpcasync.train.loop.optimizers import optimizer_factory
from hpcasync.train.loop.schedule import rate_of
from hpcasync.train.loop.step import GradientStep
from hpcasync.train.loop.task import Task, make_task
from hpcasync.train.loop.worker import run_worker
from hpcasync.train.machine.resources import Resources, settle_resources
from hpcasync.train.machine.settle_roles import settle_roles
from hpcasync.train.modes.allreduce import AllreduceExchange
from hpcasync.train.modes.asynchronous import AsynchronousExchange, CoordinatorObserver
from hpcasync.train.modes.bucket_sums import BucketSums
from hpcasync.train.modes.collectives import Collectives, start_collectives
from hpcasync.train.modes.overlapped import OverlappedExchange, PushOverlappedExchange
from hpcasync.train.records.summary import make_summary
from hpcasync.train.records.timelines import open_timeline
from hpcasync.train.records.versions import collect_versions
from hpcasync.train.supervise.rank_watch import RankWatch
from hpcasync.train.supervise.supervisor import Supervisor

# Of a mean gradient's largest elements, in units of one: fp16 reaches to 65,504, and down to 6e-8.
_FP16_RANGE = 1 << 10


@dataclass
class _Setup:
    """What every rank has before roles differ."""

    config: Config
    comm: MPI.Intracomm
    roles: Roles
    task: Task
    resources: Resources
    state: RunState
    checkpoint: Path | None
    num_checkpoint_shards: int
    deaths: Deaths
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def is_new(self) -> bool:
        """Whether the run has no directory yet that it goes on in."""
        return self.checkpoint is None or self.checkpoint.parent.parent != self.config.output_dir

    @property
    def own_checkpoint(self) -> Path | None:
        """The checkpoint in this run's directory: of another run's a copy, which stays while that run goes on."""
        return None if self.checkpoint is None else self.config.output_dir / "checkpoints" / self.checkpoint.name

    @property
    def end_of_tickets(self) -> int | None:
        """The first ticket after the last epoch; None: there is none."""
        num_epochs = self.config.stop.epochs
        return self.task.plan.first_ticket(num_epochs) if num_epochs else None


def run_training(
    config: Config,
    *,
    comm: MPI.Intracomm = MPI.COMM_WORLD,
    resume: bool = False,
    resume_from: Path | None = None,
    overwrite: bool = False,
) -> int:
    """Train on all ranks of a communicator (collective); returns the exit code of all ranks (hpcasync.exit_codes).

    Args:
        config: of the run.
        comm: whose ranks train.
        resume: go on from the newest checkpoint of the run.
        resume_from: directory of another run to go on from, unless `resume` finds a checkpoint of this one.
        overwrite: remove what the run has left before, if it begins anew or from another one.

    Raises:
        UserError: on every rank, for anything that a user can cause.
    """
    check_world_size(MPI.COMM_WORLD.size)
    require_same(comm, config.digest, "the configuration")
    setup = collectively(comm, lambda: _set_up(config, comm))
    with setup.deaths.explained(), ExitStack() as stack:
        require_same(comm, setup.task.mixture.digest, f"the corpus {config.data.path}")
        collectively(comm, lambda: _verify_corpus(setup))
        require_same(comm, setup.task.flat.digest, "the layout of the model")
        require_same(comm, setup.task.start_digest, f"the parameters of {config.model.start_from}")
        require_same(comm, describe_updates(), "how updates are computed")
        locked = run_directory_locked(config, must_exist=resume and resume_from is None)
        collectively(comm, lambda: _on_first(setup, lambda: stack.enter_context(locked)))
        collectively(comm, lambda: _on_first(setup, lambda: _find_checkpoint(setup, resume, resume_from)))
        # A run that goes on meanwhile may have a newer one when the next rank looks.
        setup.checkpoint = comm.bcast(setup.checkpoint, root=setup.roles.coordinator_rank)
        collectively(comm, lambda: _read_state(setup))
        return _train(setup, overwrite=overwrite)


def _verify_corpus(setup: _Setup) -> None:
    """One rank of each host reads all of it: tokens and offsets may have been exchanged for others of the same size."""
    hosts, rank = setup.roles.hosts, setup.comm.rank
    if hosts.index(hosts[rank]) == rank:
        setup.task.mixture.verify()


def _train(setup: _Setup, *, overwrite: bool) -> int:
    config, comm = setup.config, setup.comm
    collectives = start_collectives(config, comm, setup.resources.device) if config.mode == "sync" else None
    if setup.is_new:
        collectively(comm, lambda: _on_first(setup, lambda: _make_run_directory(setup, overwrite=overwrite)))
    setup.timeline = collectively(comm, lambda: open_timeline(config, setup.roles, comm.rank))
    exit_code = _run_asynchronous(setup) if collectives is None else _run_synchronous(setup, collectives)
    setup.deaths.ended(exit_code)
    setup.timeline.close()
    return exit_code


def _make_run_directory(setup: _Setup, *, overwrite: bool) -> None:
    create_run_directory(setup.config, setup.task.corpus.vocabulary_files, overwrite=overwrite)
    if setup.checkpoint is not None:
        take_over(setup.checkpoint, setup.config.output_dir)


def _on_first(setup: _Setup, action: Callable[[], object]) -> None:
    if setup.comm.rank == setup.roles.coordinator_rank:
        action()


def _resume(setup: _Setup) -> None:
    """All ranks have read the checkpoint: the run goes on with this configuration."""
    if setup.checkpoint is not None:
        collectively(setup.comm, lambda: _on_first(setup, lambda: save_configuration(setup.config)))


def _set_up(config: Config, comm: MPI.Intracomm) -> _Setup:
    config, roles = settle_roles(config, comm)
    deaths = Deaths(comm, roles, config)
    resources = settle_resources(config, roles, comm, allocated_cpus())
    task = make_task(config, resources.device)
    return _Setup(config, comm, roles, task, resources, RunState.new(config), None, 0, deaths)


def _find_checkpoint(setup: _Setup, resume: bool, resume_from: Path | None) -> None:
    setup.checkpoint = find_checkpoint_of(setup.config, resume=resume, resume_from=resume_from)


def _read_state(setup: _Setup) -> None:
    if setup.checkpoint is not None:
        setup.state, setup.num_checkpoint_shards = read_run_state(
            setup.checkpoint, setup.task.layout, setup.config.validation.metric
        )


def _make_supervisor(setup: _Setup, writer: ShardWriter, num_shards: int, windows: str) -> Supervisor:
    config, task = setup.config, setup.task
    recorder = task.open_recorder()
    for line in header_lines(task, setup.roles, setup.resources, windows):
        recorder.say(line)
    if setup.deaths.may_lose_workers:
        recorder.say("  workers that die: the others take over their batches")
    if setup.checkpoint is not None:
        recorder.note(f"resuming from {setup.checkpoint}")
    recorder.event(
        "start",
        configuration=config.to_dict(),
        versions=collect_versions(),
        roles=setup.roles.describe(),
        workers=len(setup.roles.worker_ranks),
    )
    if config.straggler.worker is not None:
        recorder.note(f"worker {config.straggler.worker} is slowed down {config.straggler.slowdown:g} times")
    rate = rate_of(config, recorder.batches_per_epoch)
    return Supervisor(config, rate, task.flat, num_shards, writer, recorder, setup.state, task.layout)


def _load_shard(setup: _Setup, state: ShardState, shard: Shard) -> None:
    if setup.own_checkpoint is not None:
        state.load_state_tensors(read_shard(setup.own_checkpoint, setup.num_checkpoint_shards, shard))


def _run_synchronous(setup: _Setup, collectives: Collectives) -> int:
    config, comm, flat = setup.config, setup.comm, setup.task.flat
    initial = flat.parameters.cpu()
    comm.Bcast(initial.numpy())
    flat.parameters.copy_(initial)
    optimizer = config.optimizer
    state = ShardState(flat.parameters, optimizer_factory(optimizer), ema_decay=optimizer.ema_decay)
    collectively(comm, lambda: _load_shard(setup, state, state.whole))
    _resume(setup)
    supervisor = None
    if comm.rank == 0:
        writer = ShardWriter(config.output_dir / "checkpoints", 1)
        supervisor = _make_supervisor(setup, writer, 1, windows="")
    report = None if supervisor is None else supervisor.report_event
    watch = RankWatch(comm, setup.roles.hosts, config.logging.stall, report)
    sums = _make_sums(setup, collectives, watch)
    if report is not None and comm.size > 1:
        report("sums", f"  gradients are summed by {sums.description}", by=sums.description)
    exchange = AllreduceExchange(
        sums,
        state,
        _batches(setup),
        supervisor,
        config=config,
        rate=rate_of(config, setup.task.plan.num_batches()),
        run=setup.state,
        timeline=setup.timeline,
    )
    step = GradientStep(config, setup.task.model, flat, setup.task.plan)
    comm.Barrier()
    if supervisor is not None:
        supervisor.start()
    is_over = comm.bcast(supervisor is not None and supervisor.should_stop(), root=0)
    if not is_over:
        run_worker(step, exchange, flat, setup.timeline, slowdown=_slowdown(setup))
    if supervisor is not None:
        request = supervisor.final_request()
        if request is not None:
            supervisor.save_all(request, state)
        _end(setup, supervisor)
    wait_for_all(comm)
    watch.close()
    collectives.close()
    return int(comm.bcast(0 if supervisor is None else supervisor.exit_code, root=0))


def _make_sums(setup: _Setup, collectives: Collectives, watch: RankWatch) -> BucketSums:
    config = setup.config
    tokens_per_round = config.data.batch_tokens * config.accumulate.local * setup.comm.size
    return BucketSums(
        collectives,
        setup.task.flat,
        setup.comm,
        watch,
        # The scale of fp16's gradients is found and taken out when they are complete.
        during_backward=config.precision != "fp16",
        compression=config.sync.compression,
        scale=_FP16_RANGE / 2 ** math.ceil(math.log2(tokens_per_round)),
    )


def _batches(setup: _Setup) -> BatchOrder:
    return BatchOrder(setup.state.ledger.remaining(), setup.task.plan, setup.config.stop.epochs)


def _slowdown(setup: _Setup) -> float:
    straggler = setup.config.straggler
    is_straggler = setup.roles.worker_ranks.index(setup.comm.rank) == straggler.worker
    return straggler.slowdown if is_straggler else 1.0


def _run_asynchronous(setup: _Setup) -> int:
    config, num_workers = setup.config, len(setup.roles.worker_ranks)
    engine = Engine(
        setup.comm,
        setup.task.flat.parameters,
        optimizer_factory(config.optimizer),
        engine_options(
            config,
            num_workers,
            fresh_updates=setup.task.fresh_updates(num_workers),
            may_lose_workers=setup.deaths.may_lose_workers,
        ),
        roles=setup.roles,
        version=setup.state.counters.num_updates,
        counts=setup.state.counts,
        timeline=setup.timeline,
        server_device=setup.resources.server_device,
        on_start=setup.deaths.begin,
    )
    collectively(setup.comm, lambda: _load_own_shard(setup, engine))
    _resume(setup)
    exit_code = 0
    if engine.is_server:
        exit_code = _serve(setup, engine)
    else:
        _work(setup, engine)
    return engine.close(exit_code)


def _load_own_shard(setup: _Setup, engine: Engine) -> None:
    checkpoint = setup.own_checkpoint
    if checkpoint is not None:
        engine.load(lambda shard: read_shard(checkpoint, setup.num_checkpoint_shards, shard))


def _serve(setup: _Setup, engine: Engine) -> int:
    config = setup.config
    writer = ShardWriter(config.output_dir / "checkpoints", config.num_servers)
    if not engine.is_coordinator:
        engine.serve(None, writer)
        return 0
    supervisor = _make_supervisor(setup, writer, config.num_servers, engine.windows)
    survival = None
    if setup.deaths.may_lose_workers:
        work = LostWork(len(setup.roles.worker_ranks), setup.state.ledger.remaining(), setup.end_of_tickets)
        survival = LostWorkers(work, setup.deaths.dead_workers)
    engine.serve(CoordinatorObserver(supervisor, setup.roles, setup.deaths), writer, survival)
    _end(setup, supervisor)
    setup.deaths.ended(supervisor.exit_code)
    return supervisor.exit_code


def _work(setup: _Setup, engine: Engine) -> None:
    step = GradientStep(setup.config, setup.task.model, setup.task.flat, setup.task.plan)
    config = setup.config
    if config.exchange.overlap != "none":
        require_threads(f"exchange.overlap={config.exchange.overlap}")
    kind = {"none": AsynchronousExchange, "push": PushOverlappedExchange, "full": OverlappedExchange}
    exchange = kind[config.exchange.overlap](engine.client, setup.task.flat, _batches(setup), setup.timeline)
    engine.start()
    run_worker(step, exchange, setup.task.flat, setup.timeline, slowdown=_slowdown(setup))
    exchange.close()


def _end(setup: _Setup, supervisor: Supervisor) -> None:
    supervisor.finish()
    summary = make_summary(
        setup.config,
        setup.roles,
        supervisor.counters,
        setup.state.counts,
        collect_versions(),
        stop_reason=supervisor.stop_reason,
        workers_lost=supervisor.workers_lost,
        exit_code=supervisor.exit_code,
        num_parameters=setup.task.flat.num_trainable,
    )
    supervisor.report_end(summary)
