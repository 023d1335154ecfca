"""`hpcasync simulate`: a training run, or its throughput alone, on a cluster in virtual time."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcasync.cli.parameters import FILE, Count
from hpcasync.config.schema import Config, load_config
from hpcasync.errors import UserError, describe
from hpcasync.train.supervise.stop_signals import note_stop_signals

if TYPE_CHECKING:
    from hpcasync.simulate.cluster import ClusterConfig

_STDOUT = Path("/dev/stdout")
_PREFIX = "cluster."


def _parse_sizes(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(",")) if text else ()
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of numbers such as 4,16,64") from error
    if any(size < 1 for size in sizes):
        raise click.BadParameter("numbers of workers are 1 or more")
    return sizes


@click.command()
@click.argument("config", type=FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--cluster", "cluster_file", type=FILE, metavar="FILE", help="Cluster description (docs/simulate.md).")
@click.option("--fit", "fitted_run", type=FILE, metavar="RUN_DIR", help="Cluster fitted to a run's timelines instead.")
@click.option("--save-cluster", type=FILE, metavar="FILE", help="Write the resolved cluster description.")
@click.option("--workers", type=Count(1), metavar="N", help="Short for cluster.workers=N.")
@click.option("--no-gradients", is_flag=True, help="Throughput and staleness only: seconds for thousands of workers.")
@click.option("--parameters", type=Count(min=1), metavar="N", help="Size of an imagined model; needs no corpus.")
@click.option("--steps", type=Count(min=4), metavar="N", help="Pushes per worker without gradients.")
@click.option("--search-servers", is_flag=True, help="Without gradients: how many servers to use.")
@click.option("--sweep-workers", callback=_parse_sizes, metavar="N,N,...", help="sync beside async-global, by size.")
@click.option("--staleness", type=Count(), metavar="K", help="Short for cluster.forced_staleness.updates=K.")
@click.option("--staleness-warmup", type=Count(), metavar="N", help="Short for cluster.forced_staleness.warmup=N.")
@click.option("--json", "is_json", is_flag=True, help="Without gradients: write JSON.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of this run.")
@click.option("--overwrite", is_flag=True, help="Remove an earlier simulated run of the same name, mode and seed.")
def simulate(
    config: Path,
    overrides: tuple[str, ...],
    cluster_file: Path | None,
    fitted_run: Path | None,
    save_cluster: Path | None,
    workers: int | None,
    staleness: int | None,
    staleness_warmup: int | None,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> int:
    """Train as CONFIG says on a cluster that only exists in virtual time, in this one process.

    Batches, gradients, the servers' decisions and optimizer steps are those of a real run; time is not. The run
    directory is that of `hpcasync train`, its times virtual. KEY=VALUE overrides keys of CONFIG; those that begin with
    `cluster.` override keys of the cluster description.

    Example: hpcasync simulate configs/multi30k.yaml --workers 16 --no-gradients --parameters 200000000
    """
    _check_alone()
    resolved = load_config(config, tuple(text for text in overrides if not text.startswith(_PREFIX)))
    of_cluster = tuple(text.removeprefix(_PREFIX) for text in overrides if text.startswith(_PREFIX))
    short = {"workers": workers, "forced_staleness.updates": staleness, "forced_staleness.warmup": staleness_warmup}
    of_cluster += tuple(f"{key}={value}" for key, value in short.items() if value is not None)
    if cluster_file is not None and fitted_run is not None:
        raise click.UsageError("--cluster and --fit exclude each other")
    if resume and (overwrite or fitted_run is not None):
        raise click.UsageError("--resume goes on with the run and its cluster: leave --overwrite and --fit out")
    cluster = _resolve_cluster(resolved, cluster_file, fitted_run, of_cluster, resume=resume)
    if save_cluster is not None:
        _write(_STDOUT if str(save_cluster) == "-" else save_cluster, cluster.to_yaml())
    if options["no_gradients"] or options["sweep_workers"]:
        if cluster.forced_staleness.updates:
            raise click.UsageError("--staleness changes gradients: it goes without --no-gradients and --sweep-workers")
        if resume:
            raise click.UsageError("--resume goes on with a run that has gradients")
        _without_gradients(resolved, cluster, **options)
        return 0
    note_stop_signals()
    for name in ("parameters", "steps", "search_servers", "is_json"):
        if options[name]:
            flag = "json" if name == "is_json" else name.replace("_", "-")
            raise click.UsageError(f"--{flag} goes with --no-gradients")
    return _with_gradients(resolved, cluster, overwrite=overwrite, resume=resume)


def _check_alone() -> None:
    from hpcasync.launch.ranks import rank_from_environment

    if rank := rank_from_environment():
        raise UserError(
            f"`hpcasync simulate` is one process, and this is {rank}: start it without mpirun and `launch`",
            everywhere=True,
        )


def _resolve_cluster(
    config: Config, cluster_file: Path | None, fitted_run: Path | None, overrides: tuple[str, ...], *, resume: bool
) -> "ClusterConfig":
    from hpcasync.simulate.cluster import MEASURED, load_cluster

    if resume:
        from hpcasync.simulate.run_directory import cluster_of_run

        cluster = cluster_of_run(config.output_dir, cluster_file, overrides)
    elif fitted_run is None:
        cluster = load_cluster(cluster_file, overrides)
    else:
        from hpcasync.simulate.fit import fit_cluster

        cluster = fit_cluster(fitted_run, overrides)
    if MEASURED in cluster.server.model_dump().values():
        from hpcasync.simulate.server_speed import with_measured_speeds

        cluster = with_measured_speeds(cluster, config.optimizer)
    return cluster


def _without_gradients(
    config: Config,
    cluster: "ClusterConfig",
    *,
    no_gradients: bool,
    parameters: int | None,
    steps: int | None,
    search_servers: bool,
    sweep_workers: tuple[int, ...],
    is_json: bool,
) -> None:
    from hpcasync.simulate import show, sweep
    from hpcasync.simulate.throughput import measure_throughput
    from hpcasync.simulate.times import times_of
    from hpcasync.simulate.workload import find_workload

    workload, told = find_workload(config, parameters)
    click.echo(told, err=is_json)
    make_times = times_of(cluster, config.straggler)
    if sweep_workers:
        comparisons = sweep.compare_sizes(config, cluster, workload, make_times, sweep_workers, steps)
        if is_json:
            click.echo(json.dumps([comparison.to_dict() for comparison in comparisons], indent=1))
        else:
            show.show_comparisons(comparisons)
        return
    result = measure_throughput(config, cluster, workload, make_times, num_steps=steps)
    best = None
    if search_servers and config.mode != "sync":
        best = sweep.search_servers(config, cluster, workload, make_times, steps)
    if is_json:
        found = {} if best is None else {"servers_to_use": best.to_dict()}
        facts = {"cluster": cluster.to_dict(), "num_parameters": workload.num_elements}
        click.echo(json.dumps({**result.to_dict(), **found, **facts}, indent=1))
        return
    for line in show.throughput_lines(result, cluster, workload.num_elements):
        click.echo(line)
    if best is not None:
        click.echo(show.servers_line(best))


def _with_gradients(config: Config, cluster: "ClusterConfig", *, overwrite: bool, resume: bool) -> int:
    import mpi4py

    mpi4py.rc.initialize = False  # the engine's modules import MPI, which a simulation does not start
    from hpcasync.simulate.job import run_simulated_training
    from hpcasync.simulate.times import times_of

    return run_simulated_training(
        config,
        cluster,
        times_of(cluster, config.straggler),
        num_threads=config.roles.worker_threads,
        overwrite=overwrite,
        resume=resume,
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {describe(error, 'name another place')}") from error
