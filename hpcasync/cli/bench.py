"""`hpcasync bench`: the engine beside the machine's limits, and beside what people use instead."""

import shlex

import click

from hpcasync.bench.abort import bench_abort
from hpcasync.bench.apply import bench_apply
from hpcasync.bench.compare import bench_compare
from hpcasync.bench.idle import bench_idle
from hpcasync.bench.latency import bench_latency
from hpcasync.bench.resident import bench_memory
from hpcasync.bench.rows import print_rows
from hpcasync.bench.step import bench_step
from hpcasync.bench.transport import bench_transport
from hpcasync.cli.parameters import DIRECTORY, THREADS, Count, Number

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_options = click.option("--mpirun", "options", default="", help='Options of mpirun, such as "--host a,b".')


@click.group()
def bench() -> None:
    """Measure the engine: each row has the limit that was measured in the same run, and the ratio to it.

    Run on a machine that does nothing else.
    """


@bench.command()
@click.option("--elements", type=Count(1), default=60_000_000, show_default=True, help="Parameters.")
@click.option("--rounds", type=Count(1), default=7, show_default=True, help="Samples of each.")
@click.option("--link", metavar="RATE", help="Between two hosts made for it here, whose link has this rate, such as "
              "1gbit (Linux, root).")  # fmt: skip
@_options
@_json
def transport(elements: int, rounds: int, link: str | None, options: str, as_json: bool) -> None:
    """Push and pull against memcpy; between hosts (--link, or --mpirun "--host a,b") against the line."""
    rows, library = bench_transport(elements, rounds, shlex.split(options), link)
    print_rows(rows, as_json=as_json, mpi=library)


@bench.command()
@click.option("--elements", type=Count(1), default=60_000_000, show_default=True, help="Parameters.")
@click.option("--rounds", type=Count(1), default=7, show_default=True, help="Samples of each.")
@click.option("--gradients", type=Count(1), default=4, show_default=True, help="Pushes per update.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Threads of the server.")
@_json
def apply(elements: int, rounds: int, gradients: int, threads: int, as_json: bool) -> None:
    """A server's sum of gradients and optimizer step, against the bytes it must move."""
    print_rows(bench_apply(elements, gradients, rounds, threads), as_json=as_json, threads=threads)


@bench.command()
@click.argument("corpus", type=DIRECTORY)
@click.option("--preset", default="base", show_default=True, help="Model preset.")
@click.option("--updates", type=Count(4), default=8, show_default=True, help="Updates that are measured.")
@click.option("--batch-tokens", type=Count(64), default=2048, show_default=True)
@_json
def step(corpus: str, preset: str, updates: int, batch_tokens: int, as_json: bool) -> None:
    """The part of a worker's time that is not computation, in a real training run on CORPUS."""
    print_rows(bench_step(corpus, preset, updates, batch_tokens), as_json=as_json)


@bench.command()
@click.option("--elements", type=Count(1), default=1_000_000, show_default=True, help="Parameters.")
@click.option("--updates", type=Count(1), default=200, show_default=True, help="Updates of a sample.")
@click.option("--rounds", type=Count(1), default=3, show_default=True, help="Samples of each.")
@click.option(
    "--compute", type=Number(0, 1e6), default=20.0, show_default=True, help="Milliseconds between two updates."
)
@_json
def latency(elements: int, updates: int, rounds: int, compute: float, as_json: bool) -> None:
    """From a finished gradient to the parameters that contain it, part by part; one worker, one server."""
    rows, library = bench_latency(elements, updates, rounds, compute / 1e3)
    print_rows(rows, as_json=as_json, mpi=library)


@bench.command()
@click.option("--seconds", type=Number(0.1, 1e6), default=30.0, show_default=True, help="Length of a sample.")
@click.option(
    "--step", type=Number(0, 1e6), default=2.0, show_default=True, help="Seconds that a worker computes for a push."
)
@click.option("--link", metavar="RATE", help="Ranks on two hosts made for it here, whose link has this rate, such as "
              "1gbit (Linux, root).")  # fmt: skip
@_options
@_json
def idle(seconds: float, step: float, link: str | None, options: str, as_json: bool) -> None:
    """The part of a core that a server takes while its workers compute, here or on several hosts (--link, --mpirun)."""
    rows, library = bench_idle(seconds, step, shlex.split(options), link)
    print_rows(rows, as_json=as_json, mpi=library)


@bench.command()
@click.argument("corpus", type=DIRECTORY)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--updates", type=Count(1), default=40, show_default=True, help="Length of the run.")
@_json
def memory(corpus: str, overrides: tuple[str, ...], updates: int, as_json: bool) -> None:
    """What servers and workers occupy in a training run on CORPUS, beside what the model needs."""
    print_rows(bench_memory(corpus, updates, overrides), as_json=as_json)


@bench.command()
@click.option("--rounds", type=Count(1), default=5, show_default=True, help="Samples of each.")
@_json
def abort(rounds: int, as_json: bool) -> None:
    """From an exception on one rank to the end of the whole job."""
    rows, library = bench_abort(rounds)
    print_rows(rows, as_json=as_json, mpi=library)


@bench.command()
@click.option("--elements", type=Count(1), default=10_000_000, show_default=True, help="Parameters.")
@click.option("--rounds", type=Count(1), default=3, show_default=True, help="Samples of each, in turn.")
@click.option("--updates", type=Count(1), default=20, show_default=True, help="Updates of a sample.")
@click.option("--corpus", type=DIRECTORY, help="Compare whole training runs on it, too.")
@click.option("--seconds", type=Number(0.1, 1e6), default=60.0, show_default=True, help="Length of each of these runs.")
@_json
def compare(elements: int, rounds: int, updates: int, corpus: str | None, seconds: float, as_json: bool) -> None:
    """Push, pull and apply against other ways to train with two workers (benchmarks/peers has their programs)."""
    print_rows(bench_compare(elements, rounds, updates, corpus, seconds), as_json=as_json)
