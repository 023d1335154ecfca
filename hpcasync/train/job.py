"""`hpcasync train`: a translation model trained on all ranks of a job."""

from pathlib import Path

from mpi4py import MPI

from hpcasync.comm.allocator import keep_freed_memory
from hpcasync.comm.mpi import collectively, require_same
from hpcasync.config.schema import Config
from hpcasync.slurm.environment import check_world_size
from hpcasync.train.loop.step import GradientStep
from hpcasync.train.loop.task import Task, make_task
from hpcasync.train.loop.worker import run_worker
from hpcasync.train.parts import ServerPart, SynchronousPart, WorkerPart, begin
from hpcasync.train.ranks import Ranks, settle_ranks
from hpcasync.train.run import Run


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
        resume: go on from the newest checkpoint of the run.
        resume_from: directory of another run to go on from, unless `resume` finds a checkpoint of this one.
        overwrite: remove what the run has left before, if it begins anew or from another one.

    Raises:
        UserError: on every rank, for anything that a user can cause.
    """
    check_world_size(MPI.COMM_WORLD.size)
    require_same(comm, config.digest, "the configuration")
    config, ranks = settle_ranks(config, comm)
    if ranks.resources.device.type == "cpu" and not ranks.is_server:
        keep_freed_memory()
    task = collectively(comm, lambda: make_task(config, ranks.resources.device))
    run = Run(config, ranks, task)
    with ranks.deaths.explained():
        _compare(task, ranks)
        with run.held(resume=resume, resume_from=resume_from, overwrite=overwrite):
            return _train(run, task)


def _compare(task: Task, ranks: Ranks) -> None:
    """All ranks train the same on the same (collective)."""
    comm, config = ranks.comm, task.config
    require_same(comm, task.mixture.digest, f"the corpus {config.data.path}")
    # One rank of each host reads all of it: tokens and offsets may have been exchanged for others of the same size.
    hosts = ranks.roles.hosts
    is_first_of_host = hosts.index(hosts[comm.rank]) == comm.rank
    collectively(comm, lambda: task.mixture.verify() if is_first_of_host else None)
    require_same(comm, task.flat.digest, "the layout of the model")
    require_same(comm, task.start_digest, f"the parameters of {config.model.start_from}")


def _train(run: Run, task: Task) -> int:
    part = begin(run, ServerPart, WorkerPart, SynchronousPart)
    step = None if part.exchange is None else GradientStep(task.config, task.model, task.flat, task.plan)
    part.start()
    if step is not None and part.exchange is not None:
        run_worker(step, part.exchange, task.flat, run.timeline, slowdown=run.slowdown)
    exit_code = part.end()
    run.close(exit_code)
    return exit_code
