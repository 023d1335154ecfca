"""What a run prints before it starts."""

from collections.abc import Iterator

from hpcasync.comm.mpi import library_name, thread_level
from hpcasync.comm.roles import Roles
from hpcasync.config.schema import Config
from hpcasync.ps.server.kernel_library import describe_updates
from hpcasync.train.loop.task import Task
from hpcasync.train.machine.resources import Resources


def effective_batch(config: Config, num_workers: int, tokens_per_batch: float) -> float:
    """Target tokens in one update, on average."""
    return tokens_per_batch * config.accumulate.local * config.pushes_per_update(num_workers)


def header_lines(task: Task, roles: Roles, resources: Resources, windows: str) -> Iterator[str]:
    """Roles, the cores and devices of ranks (`resources`), libraries, sizes, and the effective batch."""
    config = task.config
    yield from title_lines(config)
    for line in [*roles.describe(), *resources.lines]:
        yield f"  {line}"
    yield f"  MPI: {library_name()}, {thread_level()}; {resources.worker_threads} thread(s) per worker"
    num_workers = len(roles.worker_ranks)
    yield from task_lines(task, num_workers, task.fresh_updates(num_workers))
    if windows:
        yield f"  windows: {windows} ({config.exchange.slots} slots per worker)"


def title_lines(config: Config, kind: str = "") -> Iterator[str]:
    """Which run this is; `kind` says what is unusual about it."""
    yield f"{config.name}: {kind}mode {config.mode}, seed {config.seed}, configuration {config.digest}"
    yield f"  run directory: {config.output_dir}"


def task_lines(task: Task, num_workers: int, fresh_updates: int) -> Iterator[str]:
    """Sizes of model and corpus, how updates are made, the effective batch, and the fresh start."""
    config, flat, plan = task.config, task.flat, task.plan
    model = config.model
    yield (
        f"  model: {model.architecture}, {model.encoder_layers}+{model.decoder_layers} layers of {model.dim}, "
        f"{flat.num_trainable:,} parameters, {config.precision} on {flat.parameters.device.type}"
        + (", layers compiled for each shape of batches" if config.compile else "")
    )
    yield f"  updates on CPU: {describe_updates()}"
    per_batch = task.tokens_per_batch
    yield (
        f"  corpus: {len(task.mixture.tokens):,} pairs, {plan.num_batches():,} batches per epoch of {per_batch:,.0f} "
        f"target tokens on average, padding {100 * plan.padding().both:.1f} %"
    )
    summed = f"{num_workers} workers" if config.mode == "sync" else f"global {config.pushes_per_update(num_workers)}"
    yield (
        f"  effective batch: {effective_batch(config, num_workers, per_batch):,.0f} target tokens per update "
        f"(local {config.accumulate.local} x {summed})"
    )
    if fresh_updates:
        yield f"  fresh start: workers wait for the first {fresh_updates:,} updates, as in sync (staleness.fresh_start)"
