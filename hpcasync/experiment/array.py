"""Runs as SLURM arrays: for each number of ranks one that trains, and one that scores what has been trained."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from hpcasync.errors import UserError
from hpcasync.experiment.execute import commands, flags_of
from hpcasync.experiment.plan import PlannedRun
from hpcasync.experiment.schema import Experiment
from hpcasync.experiment.status import Status
from hpcasync.slurm.resources import Resources, whole_options
from hpcasync.slurm.script import SETTINGS_WORD, WARNING_SECONDS, BatchJob

Work = Sequence[tuple[PlannedRun, Status]]


def make_chains(experiment: Experiment, work: Work, directory: Path) -> list[tuple[BatchJob, ...]]:
    """Arrays for runs that are to be done, each with what is to begin when it has ended.

    Args:
        work: the runs with where they stand.
        directory: of the experiment, on a file system that the nodes share.

    Raises:
        UserError: the runs are simulated, or their ranks cannot be dealt out evenly to the nodes.
    """
    if experiment.run == "simulated":
        raise UserError("--slurm is for real runs: a simulation needs no cluster, leave --slurm out")
    by_ranks: dict[int, list[tuple[PlannedRun, Status]]] = {}
    for run, status in work:
        if status is not Status.UNSCORED:
            by_ranks.setdefault(run.num_ranks, []).append((run, status))
    chains: list[tuple[BatchJob, ...]] = []
    for _, runs in sorted(by_ranks.items()):
        train = _train(experiment, runs, directory)
        chains.append((train,) if experiment.evaluate == "none" else (train, _score(experiment, runs, directory)))
    if unscored := [(run, status) for run, status in work if status is Status.UNSCORED]:
        chains.append((_score(experiment, unscored, directory),))
    return chains


def _train(experiment: Experiment, work: Work, directory: Path) -> BatchJob:
    nodes = experiment.slurm.nodes
    run, _ = work[0]
    if run.num_ranks % nodes:
        raise UserError(
            f"run {run.name} has {run.num_ranks} ranks, which {nodes} nodes (slurm.nodes) cannot share evenly: "
            "change workers, roles.servers or slurm.nodes"
        )
    return BatchJob(
        kind="train",
        name=experiment.name,
        components=(Resources(nodes, run.num_ranks // nodes, extra=_options(experiment, directory)),),
        command=("train_job", "any", str(experiment.base), SETTINGS_WORD),
        settings=tuple((*run.overrides, *flags_of(status)) for run, status in work),
        signal_seconds=WARNING_SECONDS,
    )


def _score(experiment: Experiment, work: Work, directory: Path) -> BatchJob:
    return BatchJob(
        kind="evaluate",
        name=f"{experiment.name}-evaluate",
        components=(Resources(extra=_options(experiment, directory)),),
        command=("run_each", SETTINGS_WORD),
        settings=tuple(tuple(map(shlex.join, commands(experiment, run, Status.UNSCORED, None))) for run, _ in work),
    )


def _options(experiment: Experiment, directory: Path) -> tuple[str, ...]:
    return (f"--output={directory}/logs/%x-%A_%a.out", *whole_options(experiment.slurm.options))
