"""What a run prints before it starts."""

from collections.abc import Iterable, Iterator

from hpcasync.comm.mpi import library_name, thread_level
from hpcasync.config.schema import RunConfig
from hpcasync.train.ranks import Ranks


def header_lines(config: RunConfig, ranks: Ranks, task: Iterable[str], windows: str) -> Iterator[str]:
    """Roles, the cores and devices of ranks (`resources`), libraries, and what is said of what is trained (`task`)."""
    roles, resources = ranks.roles, ranks.resources
    is_plain = config.mode != "sync" and not roles.server_ranks
    yield from title_lines(config, "one rank, plain training, " if is_plain else "")
    for line in [*roles.describe(), *resources.lines]:
        yield f"  {line}"
    yield f"  MPI: {library_name()}, {thread_level()}; {resources.worker_threads} thread(s) per worker"
    yield from task
    if windows:
        yield f"  windows: {windows} ({config.exchange.slots} slots per worker)"
    if ranks.deaths.may_lose_workers:
        yield "  workers that die: the others take over their batches"


def title_lines(config: RunConfig, kind: str = "") -> Iterator[str]:
    """Which run this is; `kind` says what is unusual about it."""
    yield f"{config.name}: {kind}mode {config.mode}, seed {config.seed}, configuration {config.digest}"
    yield f"  run directory: {config.output_dir}"
