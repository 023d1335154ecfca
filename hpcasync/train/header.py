"""What a run prints before it starts."""

from collections.abc import Iterator

from hpcasync.comm.mpi import library_name, thread_level
from hpcasync.comm.roles import Roles
from hpcasync.config import Config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.ps.flat import FlatParameters
from hpcasync.train.resources import Resources


def effective_batch(config: Config, roles: Roles, tokens_per_batch: float) -> float:
    """Target tokens in one update, on average."""
    per_update = len(roles.worker_ranks) if config.mode == "sync" else config.accumulate.global_
    return tokens_per_batch * config.accumulate.local * per_update


def header_lines(
    config: Config,
    roles: Roles,
    corpus: PreparedCorpus,
    plan: BatchPlan,
    flat: FlatParameters,
    resources: Resources,
    window_bytes: int,
) -> Iterator[str]:
    """Roles, the cores and devices of ranks (`resources`), libraries, sizes, and the effective batch."""
    yield f"{config.name}: mode {config.mode}, seed {config.seed}, configuration {config.digest}"
    yield f"  run directory: {config.output_dir}"
    for line in [*roles.describe(), *resources.lines]:
        yield f"  {line}"
    yield f"  MPI: {library_name()}, {thread_level()}; {resources.worker_threads} thread(s) per worker"
    model = config.model
    yield (
        f"  model: {model.architecture}, {model.encoder_layers}+{model.decoder_layers} layers of {model.dim}, "
        f"{flat.num_trainable:,} parameters, {config.precision} on {flat.parameters.device.type}"
    )
    target_tokens = int(corpus.train.target_file.offsets[-1]) + len(corpus.train)
    per_batch = target_tokens / plan.num_batches()
    padding = plan.padding()
    yield (
        f"  corpus: {len(corpus.train):,} pairs, {plan.num_batches():,} batches per epoch of {per_batch:,.0f} target "
        f"tokens on average, padding {100 * padding.both:.1f} %"
    )
    accumulate = config.accumulate
    summed = f"{len(roles.worker_ranks)} workers" if config.mode == "sync" else f"global {accumulate.global_}"
    yield (
        f"  effective batch: {effective_batch(config, roles, per_batch):,.0f} target tokens per update "
        f"(local {accumulate.local} x {summed})"
    )
    if window_bytes:
        yield f"  windows: {window_bytes / 2**20:,.1f} MiB over all servers ({config.exchange.slots} slots per worker)"
