"""What a run would be, and about how long it would take: workers compute a few gradients, and nothing is written."""

import math
import time
from collections.abc import Iterator
from functools import partial

from mpi4py import MPI

from hpcasync.comm.mpi import collectively, require_same
from hpcasync.comm.waiting import wait_for_all
from hpcasync.command_line import this_command_on
from hpcasync.config.schema import Config
from hpcasync.slurm.environment import check_world_size
from hpcasync.train.header import title_lines
from hpcasync.train.loop.step import GradientStep
from hpcasync.train.loop.task import Task, make_task
from hpcasync.train.machine.resources import settle_resources
from hpcasync.train.machine.settle_roles import settle_roles

# The first gradients of a process are slower: memory is touched, kernels are chosen.
_WARM_UP_STEPS = 2
_MOST_STEPS = 12
_MOST_SECONDS = 20.0


def show_run(config: Config) -> None:
    """Print on one rank what `run_training` would do (collective).

    A single process stands for one worker.

    Raises:
        UserError: on every rank, for what would keep the run from starting, but for what lies in its directory.
    """
    comm = MPI.COMM_WORLD
    check_world_size(comm.size)
    require_same(comm, config.digest, "the configuration")
    config, roles = collectively(comm, partial(settle_roles, config, comm, may_be_alone=True))
    resources = settle_resources(config, roles, comm)
    task = collectively(comm, lambda: make_task(config, resources.device))
    speed = 0.0 if roles.is_server(comm.rank) else _tokens_per_second(task, roles.worker_ranks.index(comm.rank))
    wait_for_all(comm)
    speeds = comm.gather(speed, root=0)
    if speeds is None:
        return
    num_workers = len(roles.worker_ranks)
    lines = [*roles.describe(), *resources.lines, *task.describe(num_workers, task.fresh_start(num_workers).updates)]
    lines += length_lines(config, task, num_workers, sum(speeds))
    if comm.size == 1 and config.mode != "sync":
        num_servers = 1 if config.has_server_per_device else config.num_servers
        lines.append(
            "one process stands for a worker here; start as many ranks as the run will have: "
            + this_command_on(num_servers + 2)
        )
    print("\n".join([*title_lines(config), *(f"  {line.strip()}" for line in lines), "nothing has been written"]))


def length_lines(config: Config, task: Task, num_workers: int, tokens_per_second: float) -> Iterator[str]:
    """Where training ends, and when that will be."""
    stop, per_epoch = config.stop, task.plan.num_batches() * task.tokens_per_batch
    per_update = task.effective_batch(num_workers)
    limits = {
        f"stop.updates={stop.updates}": stop.updates * per_update,
        f"stop.epochs={stop.epochs}": stop.epochs * per_epoch,
        f"stop.tokens={stop.tokens}": float(stop.tokens),
        f"stop.seconds={stop.seconds:g}": stop.seconds * tokens_per_second,
    }
    reached = {name: tokens for name, tokens in limits.items() if tokens}
    patience = f"; stop.patience={stop.patience} may end it sooner" if stop.patience else ""
    if not reached:
        yield f"length: no limit is set{patience}"
        return
    name, tokens = min(reached.items(), key=lambda limit: limit[1])
    yield (
        f"length: {name}, about {math.ceil(tokens / per_update):,} updates, {tokens / per_epoch:.3g} epochs, "
        f"{tokens:,.0f} target tokens{patience}"
    )
    yield (
        f"expected: about {_duration(tokens / tokens_per_second)} at {tokens_per_second:,.0f} target tokens per second "
        f"({num_workers} worker{'' if num_workers == 1 else 's'}, gradients alone: transfers, updates and validation "
        "take more)"
    )


def _tokens_per_second(task: Task, worker: int) -> float:
    """Target tokens that this worker makes a gradient of, while the others do."""
    step = GradientStep(task.config, task.model, task.flat, task.plan)
    tickets = iter(range(worker * _MOST_STEPS * task.config.accumulate.local, task.plan.num_batches() * (worker + 2)))
    began, tokens, seconds = time.perf_counter(), 0, 0.0
    for number in range(_MOST_STEPS):
        started = time.perf_counter()
        made = step.run(lambda: next(tickets, None))
        if number >= _WARM_UP_STEPS:
            tokens += made.num_tokens
            seconds += time.perf_counter() - started
        if seconds and time.perf_counter() - began > _MOST_SECONDS:
            break
    return tokens / seconds


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"
