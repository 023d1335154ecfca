"""`hpcasync simulate` with gradients: a run directory as a real run leaves it, with virtual times."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcasync.comm.roles import Roles, assign_roles
from hpcasync.comm.shards import Shard, cut_shards
from hpcasync.config import Config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.errors import UserError
from hpcasync.nmt.build import build_model
from hpcasync.nmt.memory import keep_freed_memory
from hpcasync.nmt.model import TranslationModel
from hpcasync.ps.flat import FlatParameters
from hpcasync.simulate.asynchronous import AsynchronousCluster, ExchangeOptions
from hpcasync.simulate.cluster import MOST_WORKERS_WITH_GRADIENTS, ClusterConfig
from hpcasync.simulate.synchronous import SynchronousCluster
from hpcasync.simulate.throughput import make_decisions
from hpcasync.simulate.times import MakeTimes
from hpcasync.simulate.timing import Costs
from hpcasync.simulate.training import Training
from hpcasync.simulate.workload import push_and_pull_bytes
from hpcasync.train.checkpoints import ShardWriter
from hpcasync.train.console import Console
from hpcasync.train.corpus_checks import open_corpus
from hpcasync.train.devices import choose_device
from hpcasync.train.header import effective_batch
from hpcasync.train.recorder import Recorder
from hpcasync.train.run_directory import create_run_directory
from hpcasync.train.run_files import write_text_atomically
from hpcasync.train.run_state import RunState
from hpcasync.train.summary import make_summary
from hpcasync.train.supervisor import Supervisor
from hpcasync.train.versions import collect_versions

CLUSTER_FILE = "cluster.yaml"


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
    corpus: PreparedCorpus
    plan: BatchPlan
    model: TranslationModel
    flat: FlatParameters
    state: RunState
    clock: _Clock

    @property
    def shards(self) -> list[Shard]:
        """One per server; in sync the whole."""
        return cut_shards(self.flat.num_elements, max(1, self.config.num_servers))


def run_simulated_training(
    config: Config,
    cluster: ClusterConfig,
    make_times: MakeTimes,
    *,
    num_threads: int | None,
    overwrite: bool,
) -> int:
    """Train in virtual time into config.output_dir; returns the exit code.

    Args:
        config: of the run.
        cluster: none of its times "measured".
        make_times: of the workers' computation.
        num_threads: intra-op threads; default: torch's.
        overwrite: remove an earlier simulated run.

    Raises:
        UserError: for anything that a user can cause.
    """
    _check(config, cluster)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    setup = _set_up(config, cluster)
    _check_overwrite(config.output_dir, overwrite=overwrite)
    create_run_directory(config, setup.corpus, overwrite=overwrite)
    write_text_atomically(config.output_dir / CLUSTER_FILE, cluster.to_yaml())
    writer = ShardWriter(config.output_dir / "checkpoints", len(setup.shards))
    supervisor = _make_supervisor(setup, writer)
    training = Training(
        config, setup.corpus, setup.plan, setup.model, setup.flat, setup.shards, supervisor, writer, cluster.workers
    )
    simulated = setup.clock.cluster = _make_cluster(setup, training, make_times)
    supervisor.start()
    simulated.run()
    request = supervisor.final_request()
    if request is not None:
        training.save(request)
    supervisor.finish()
    supervisor.report_end(_summary(setup, supervisor, simulated))
    return supervisor.exit_code


def _check(config: Config, cluster: ClusterConfig) -> None:
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
    if config.mode != "sync":
        ExchangeOptions.of(config)  # refuses what is not simulated
    if config.stop.patience:
        raise UserError(
            "stop.patience counts scores, which come at real and not at virtual times: set another limit for a "
            "simulation, and stop.patience=0"
        )


def _check_overwrite(run_dir: Path, *, overwrite: bool) -> None:
    if overwrite and (run_dir / "config.yaml").exists() and not (run_dir / CLUSTER_FILE).exists():
        raise UserError(
            f"{run_dir} holds a run that was not simulated, which --overwrite does not remove here: set name or run_dir"
        )


def _set_up(config: Config, cluster: ClusterConfig) -> _Setup:
    num_ranks = config.num_servers + cluster.workers
    roles = assign_roles(["simulated"] * num_ranks, config.num_servers)
    device = choose_device(config, roles, roles.worker_ranks[0])
    if device.type == "cpu":
        keep_freed_memory()
    corpus = open_corpus(config)
    source, target = corpus.source_vocabulary, corpus.target_vocabulary
    plan = BatchPlan(corpus.train, source, target, batch_tokens=config.data.batch_tokens, seed=config.seed)
    torch.manual_seed(config.seed)
    model = build_model(config.model, len(source), len(target), source.pad_id, target.pad_id).to(device)
    flat = FlatParameters(model)
    return _Setup(config, cluster, roles, corpus, plan, model, flat, RunState.new(config), _Clock())


def _make_supervisor(setup: _Setup, writer: ShardWriter) -> Supervisor:
    config, plan = setup.config, setup.plan
    console = Console(config.stop, plan.num_batches())
    recorder = Recorder(
        config.output_dir,
        console,
        every=config.logging.every,
        tensorboard=config.logging.tensorboard,
        batches_per_epoch=plan.num_batches(),
    )
    for line in _header(setup):
        console.line(line)
    recorder.event(
        "start",
        configuration=config.to_dict(),
        versions=collect_versions(),
        roles=setup.roles.describe(),
        cluster=setup.cluster.to_dict(),
    )
    layout = {
        "model": setup.flat.digest,
        "corpus": setup.corpus.digest,
        "batches": f"{config.data.batch_tokens} tokens, seed {config.seed}",
    }
    return Supervisor(
        config, config.output_dir, setup.flat, len(setup.shards), writer, recorder, setup.state, layout, setup.clock
    )


def _header(setup: _Setup) -> list[str]:
    config, cluster, plan = setup.config, setup.cluster, setup.plan
    tokens = int(setup.corpus.train.target_file.offsets[-1]) + len(setup.corpus.train)
    batch = effective_batch(config, setup.roles, tokens / plan.num_batches())
    return [
        f"{config.name}: simulated, mode {config.mode}, seed {config.seed}, configuration {config.digest}",
        f"  run directory: {config.output_dir}",
        f"  cluster: {cluster.workers} workers, {config.num_servers} servers, seed {cluster.seed}",
        f"  model: {setup.flat.num_trainable:,} parameters, {config.precision} on {setup.flat.parameters.device.type}",
        f"  corpus: {len(setup.corpus.train):,} pairs, {plan.num_batches():,} batches per epoch",
        f"  effective batch: {batch:,.0f} target tokens per update",
        "  all times are virtual",
    ]


def _make_cluster(setup: _Setup, training: Training, make_times: MakeTimes) -> AsynchronousCluster | SynchronousCluster:
    config, cluster = setup.config, setup.cluster
    num_elements = setup.flat.num_elements
    push_bytes, pull_bytes = push_and_pull_bytes(config, num_elements)
    costs = Costs(cluster, make_times(cluster), len(setup.shards), num_elements, push_bytes, pull_bytes)
    counts = setup.state.counts
    if config.mode == "sync":
        return SynchronousCluster(costs, training, counts, num_local=config.accumulate.local)
    decisions = make_decisions(config, cluster.workers, counts)
    options = ExchangeOptions.of(config)
    return AsynchronousCluster(costs, training, decisions, options, stop_seconds=config.stop.seconds)


def _summary(
    setup: _Setup,
    supervisor: Supervisor,
    simulated: AsynchronousCluster | SynchronousCluster,
) -> dict[str, Any]:
    return make_summary(
        setup.config,
        setup.roles,
        supervisor.counters,
        setup.state.counts,
        collect_versions(),
        stop_reason=supervisor.stop_reason,
        num_parameters=setup.flat.num_trainable,
        simulated={
            "cluster": setup.cluster.to_dict(),
            "efficiency": simulated.usage.compute / (setup.cluster.workers * simulated.now) if simulated.now else 0.0,
        },
    )
