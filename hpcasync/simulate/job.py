"""`hpcasync simulate` with gradients: a run directory as a real run leaves it, with virtual times."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hpcasync.comm.allocator import keep_freed_memory
from hpcasync.comm.roles import Roles, assign_roles
from hpcasync.comm.shards import Shard
from hpcasync.complete_files import write_text_atomically
from hpcasync.config.schema import Config
from hpcasync.errors import UserError
from hpcasync.nmt.load import choose_device
from hpcasync.ps.protocol.tickets import TicketLedger
from hpcasync.ps.protocol.updates import PushCounts
from hpcasync.ps.server.parameter_groups import cut_in_shards
from hpcasync.runs.checkpoints import ShardWriter, read_shard
from hpcasync.runs.directory import (
    create_run_directory,
    find_checkpoint,
    read_run_state,
    run_directory_locked,
    save_configuration,
)
from hpcasync.runs.run_state import RunState
from hpcasync.simulate.asynchronous import AsynchronousCluster
from hpcasync.simulate.cluster import MOST_WORKERS_WITH_GRADIENTS, ClusterConfig
from hpcasync.simulate.exchange import ExchangeOptions
from hpcasync.simulate.hosts import hosts_of
from hpcasync.simulate.program import Program
from hpcasync.simulate.resumption import Replay, SavedSimulation
from hpcasync.simulate.run_directory import CLUSTER_FILE, check_overwrite, check_same_run
from hpcasync.simulate.synchronous import SynchronousCluster
from hpcasync.simulate.throughput import make_decisions
from hpcasync.simulate.times import MakeTimes
from hpcasync.simulate.timing import Costs
from hpcasync.simulate.training import Training
from hpcasync.timeline import Timeline, TimelineFile, timeline_path
from hpcasync.train.header import title_lines
from hpcasync.train.loop.optimizers import matrix_operations
from hpcasync.train.loop.task import Task, make_task
from hpcasync.train.records.start import begin_records
from hpcasync.train.supervise.supervisor import Supervisor


class _Clock:
    """The virtual time of a cluster that is built after those who ask for it."""

    cluster: AsynchronousCluster | SynchronousCluster | None = None

    def __call__(self) -> float:
        return 0.0 if self.cluster is None else self.cluster.now


@dataclass
class _Setup:
    """What a simulated run is made of."""

    config: Config
    cluster: ClusterConfig
    roles: Roles
    task: Task
    shards: list[Shard]
    state: RunState
    saved: SavedSimulation | None
    clock: _Clock

    @property
    def fresh_updates(self) -> int:
        """First updates that workers wait for, as in sync."""
        return 0 if self.state.fresh_start is None else self.state.fresh_start.updates


def run_simulated_training(
    config: Config,
    cluster: ClusterConfig,
    make_times: MakeTimes,
    *,
    num_threads: int | None,
    overwrite: bool = False,
    resume: bool = False,
) -> int:
    """Train in virtual time into config.output_dir; returns the exit code.

    Args:
        cluster: none of its times "measured".
        make_times: of the workers' computation.
        num_threads: intra-op threads; default: torch's.
        overwrite: remove an earlier simulated run.
        resume: go on from the newest checkpoint of an earlier simulated run.
    """
    _check(config, cluster)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    setup = _set_up(config, cluster)
    setup.task.mixture.verify()
    with run_directory_locked(config, must_exist=resume):
        if resume:
            _go_on(setup)
            save_configuration(config)
        else:
            check_overwrite(config.output_dir, overwrite=overwrite)
            create_run_directory(config, setup.task.corpus.vocabulary_files, overwrite=overwrite)
            write_text_atomically(config.output_dir / CLUSTER_FILE, cluster.to_yaml())
        return _simulate(setup, make_times)


def _simulate(setup: _Setup, make_times: MakeTimes) -> int:
    config, cluster = setup.config, setup.cluster
    writer = ShardWriter(config.output_dir / "checkpoints", len(setup.shards))
    supervisor = _make_supervisor(setup, writer)
    training = Training(
        setup.task,
        setup.shards,
        supervisor,
        writer,
        cluster.workers,
        hosts=hosts_of(config, cluster, len(setup.shards)),
    )
    program: Program = training
    if setup.saved is None:
        training.begin()
    else:
        program = Replay(training, setup.saved, setup.state.ledger)
    simulated = setup.clock.cluster = _make_cluster(setup, program, make_times)
    timelines = _open_timelines(setup)
    simulated.run(timelines)
    for timeline in timelines:
        timeline.close()
    request = supervisor.final_request()
    if request is not None:
        training.save(request)
    efficiency = simulated.usage.compute / (cluster.workers * simulated.now) if simulated.now else 0.0
    supervisor.end(setup.roles, simulated={"cluster": cluster.to_dict(), "efficiency": efficiency})
    return supervisor.exit_code


def _check(config: Config, cluster: ClusterConfig) -> None:
    hosts_of(config, cluster, max(1, config.num_servers))  # refuses what cannot be, before anything is written
    if cluster.workers > MOST_WORKERS_WITH_GRADIENTS:
        raise UserError(
            f"cluster.workers={cluster.workers}: with gradients at most {MOST_WORKERS_WITH_GRADIENTS} workers can be "
            "simulated; leave the gradients out with --no-gradients, which tells throughput alone"
        )
    if cluster.forced_staleness.updates and config.mode != "sync":
        raise UserError(
            "cluster.forced_staleness.updates forces the staleness of mode=sync; in mode "
            f"{config.mode} it comes by itself"
        )


def _set_up(config: Config, cluster: ClusterConfig) -> _Setup:
    num_ranks = config.num_servers + cluster.workers
    roles = assign_roles(["simulated"] * num_ranks, config.num_servers)
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    task = make_task(config, device)
    # One per server; in sync the whole.
    shards = cut_in_shards(task.optimizers, task.flat.num_elements, max(1, config.num_servers))
    state = RunState.new(config)
    if config.mode != "sync":
        state = state.with_fresh_start(task.fresh_start(cluster.workers))
    return _Setup(config, cluster, roles, task, shards, state, None, _Clock())


def _go_on(setup: _Setup) -> None:
    """Read the newest checkpoint of the run."""
    config = setup.config
    checkpoint = find_checkpoint(config.output_dir)
    check_same_run(config, setup.cluster)
    state, num_shards = read_run_state(checkpoint, setup.task.layout, config.validation.metric)
    shard_tensors = [read_shard(checkpoint, num_shards, shard) for shard in setup.shards]
    setup.saved = SavedSimulation(str(checkpoint), state.counters.num_updates, shard_tensors)
    # The replay counts gradients and batches again, those left out that came after the last update.
    fresh_start = state.fresh_start or setup.state.fresh_start
    setup.state = RunState(state.counters, TicketLedger(), state.best, PushCounts(), fresh_start)
    setup.saved.check()  # refuses what no simulation has written, before anything is


def _make_supervisor(setup: _Setup, writer: ShardWriter) -> Supervisor:
    config, task = setup.config, setup.task
    recorder = begin_records(
        config,
        setup.roles,
        _header(setup),
        None if setup.saved is None else setup.saved.name,
        batches_per_epoch=task.plan.num_batches(),
        unit=task.unit,
        cluster=setup.cluster.to_dict(),
    )
    return Supervisor(config, task.rate, task.flat, writer, recorder, setup.state, task.layout, setup.clock)


def _header(setup: _Setup) -> Iterator[str]:
    config, cluster = setup.config, setup.cluster
    yield from title_lines(config, "simulated, ")
    yield f"  cluster: {cluster.workers} workers, {config.num_servers} servers, seed {cluster.seed}"
    yield from setup.task.describe(cluster.workers, setup.fresh_updates)
    yield "  all times are virtual"


def _make_cluster(setup: _Setup, program: Program, make_times: MakeTimes) -> AsynchronousCluster | SynchronousCluster:
    config, cluster = setup.config, setup.cluster
    operations = matrix_operations(config.optimizer, setup.task.model)
    times, num_elements = make_times(cluster), setup.task.flat.num_elements
    costs = Costs.of(config, cluster, times, len(setup.shards), num_elements, matrix_operations=operations)
    counts = setup.state.counts
    if config.mode == "sync":
        return SynchronousCluster(
            costs, program, counts, num_local=config.accumulate.local, during_backward=config.precision != "fp16"
        )
    decisions = make_decisions(config, cluster.workers, counts, fresh_updates=setup.fresh_updates)
    options = ExchangeOptions.of(config, setup.fresh_updates)
    return AsynchronousCluster(costs, program, decisions, options, stop_seconds=config.stop.seconds)


def _open_timelines(setup: _Setup) -> Sequence[Timeline]:
    """Of the first server, which stands for all, and of each worker; a resumed run writes them anew in its replay."""
    config, roles = setup.config, setup.roles
    if not config.logging.timeline:
        return ()
    ranks = [("server", 0, rank) for rank in roles.server_ranks[:1]]
    ranks += [("worker", index, rank) for index, rank in enumerate(roles.worker_ranks)]
    timelines = []
    for role, index, rank in ranks:
        timeline_path(config.output_dir, rank).unlink(missing_ok=True)
        timelines.append(
            TimelineFile(
                config.output_dir, rank=rank, role=role, index=index, host="simulated", clock=setup.clock, opened=0.0
            )
        )
    return timelines
