"""`hpcasync.join`: a program's module and optimizer become a rank of a job."""

import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from mpi4py import MPI
from torch.optim.lr_scheduler import LRScheduler

from hpcasync.comm.mpi import collectively, require_same
from hpcasync.config.program import ProgramConfig, program_config
from hpcasync.deaths import lifeline
from hpcasync.errors import UserError
from hpcasync.launch.failure import abort_on_thread_errors, end_process
from hpcasync.program.arguments import require_module
from hpcasync.program.job import Job, Joined
from hpcasync.program.schedule import Schedule, parameters_in_order
from hpcasync.program.scheduler_calls import SchedulerCalls
from hpcasync.program.takeover import take_over
from hpcasync.program.worker import Worker
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.slurm.environment import check_world_size
from hpcasync.train.ranks import settle_ranks
from hpcasync.train.supervise.stop_signals import note_stop_signals


def join(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: LRScheduler | Sequence[LRScheduler] = (),
    mode: str = "async-global",
    run: str | Path | None = None,
    servers: int = 1,
    accumulate: int = 1,
    clip_norm: float = 0.0,
    seed: int = 1,
    reduction: str = "mean",
    schedule_per: str = "step",
    resume: bool | None = None,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Job:
    """Join the other ranks of this program in training one module (collective).

    From now on `optimizer.step()` pushes the module's gradient and pulls parameters; servers make the steps, with
    optimizers of this one's class and settings. On a single rank training is what it was.

    Args:
        model: the same on every rank: seed before it is built. float32 parameters; on the CPU, from where it is brought
            to this rank's GPU, if there is one.
        optimizer: holds all trainable parameters, in any number of groups; it must work element by element.
        scheduler: of the optimizer; the servers step it, and its own `step()` does nothing any more.
        mode: async-global, async, async-local, async-combined, or sync.
        run: the run directory; default: runs/ and the program's name.
        servers: ranks that own shards of the parameters; not in sync.
        accumulate: batches between two steps of a worker, at most (`accumulate.local`).
        clip_norm: global norm that an update's gradient is clipped to, by the servers; 0: no clipping.
        seed: of the order of batches.
        reduction: whether the losses are means or sums over what a batch weighs. An update is the mean over all of it.
        schedule_per: when the scheduler makes a step: "step", for each `optimizer.step()` of a worker, which keeps pace
            with the data however many of these make an update; "epoch"; "batch"; or "update", a step of the servers.
        resume: go on from the run's newest checkpoint; default: if there is one.
        overwrite: remove what is in the run directory.
        settings: any other key of the configuration (`hpcasync train --keys`), such as {"staleness.limit": 4}.

    Returns:
        this rank's part.

    Raises:
        UserError: on every rank, for anything that a user can cause.
    """
    values = {
        "mode": "async-combined" if mode == "async-global" and accumulate > 1 else mode,
        "seed": seed,
        "roles.servers": servers,
        "accumulate.local": accumulate,
        "optimizer.clip_norm": clip_norm,
        "reduction": reduction,
        "schedule_per": schedule_per,
    }
    comm = _start()
    config = collectively(comm, lambda: program_config(run or _default_run(), settings or {}, **values))
    if resume and overwrite:
        raise UserError("hpcasync.join: resume and overwrite exclude each other", everywhere=True)
    return _join(comm, config, model, optimizer, scheduler, resume=resume, overwrite=overwrite)


# That this process has joined.
_jobs: "list[weakref.ref[Job]]" = []


def _require_no_other() -> None:
    other = _jobs.pop()() if _jobs else None
    if other is not None and not other.has_trained:
        raise UserError(
            "hpcasync.join a second time, and what joined before has not been trained: a job has one optimizer (in any "
            "number of groups) and one loop; a GAN, whose two optimizers step in turn, is not to be trained so"
        )


def _start() -> MPI.Intracomm:
    """All ranks, which end together from now on."""
    comm = MPI.COMM_WORLD
    _end_all_on_an_error(is_alone=comm.size == 1)
    note_stop_signals()
    lifeline.save_on_usr1()
    check_world_size(comm.size)
    return comm


def _default_run() -> Path:
    return Path("runs") / (Path(sys.argv[0]).stem or "program")


def _join(
    comm: MPI.Intracomm,
    config: ProgramConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | Sequence[LRScheduler],
    *,
    resume: bool | None,
    overwrite: bool,
) -> Job:
    require_module(model, optimizer)
    _require_no_other()
    require_same(comm, config.digest, "what hpcasync.join was given")
    config, ranks = settle_ranks(config, comm, may_be_alone=True)
    schedulers = [scheduler] if isinstance(scheduler, LRScheduler) else list(scheduler)
    calls = SchedulerCalls(config.schedule_per)
    schedule = collectively(comm, lambda: Schedule(optimizer, schedulers, calls))
    flat = collectively(comm, lambda: _flatten(model, optimizer, ranks.resources.device))
    require_same(comm, flat.digest, "the model")
    worker = Worker(config, flat, is_synchronous=not ranks.roles.server_ranks)

    def step() -> None:
        schedule.require_untouched()
        epoch = worker.epoch_of_step
        worker.step()
        calls.after_step(epoch)

    take_over(model, optimizer, step, worker.zero_grad, may_scale=not config.sums_during_backward)
    job = Job(Joined(config, ranks, model, flat, schedule, resume, overwrite), worker)
    _jobs.append(weakref.ref(job))
    return job


def _flatten(model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> FlatParameters:
    # Adagrad has a state before its first step.
    if any(state.get("step") != 0 for state in optimizer.state.values()):
        raise UserError(
            "the optimizer has made steps already, and servers begin without its state: join before the first step; a "
            "run goes on from its checkpoints (resume=True)"
        )
    order = parameters_in_order(model, optimizer)
    # Also from another GPU: where a program says "cuda", all ranks of a host mean the same one.
    if device.type == "cuda" and any(parameter.device != device for parameter in order):
        model.to(device)
    return FlatParameters(model, order)


def _end_all_on_an_error(*, is_alone: bool) -> None:
    """The other ranks would wait for this one for ever. A user's error needs no traceback."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if is_alone and not isinstance(error, UserError):
            before(kind, error, trace)
        else:
            end_process(error.with_traceback(trace))

    sys.excepthook = hook
    if not is_alone:
        abort_on_thread_errors()
