"""`hpcasync slurm`: batch scripts from a configuration, printed or submitted."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hpcasync.cli.parameters import FILE, Count
from hpcasync.errors import UserError
from hpcasync.slurm.jobs import KINDS, Kind, Request, plan_jobs
from hpcasync.slurm.resources import gpus_of_gres, whole_options
from hpcasync.slurm.script import BatchJob, render, scripts_directory
from hpcasync.slurm.submit import check_jobs, submit_jobs
from hpcasync.slurm.times import parse_time

_COUNT = Count(1)


def _refuse_array(_context: click.Context, _option: click.Parameter, file: str | None) -> None:
    if file is not None:
        raise UserError(
            f"--array {file}: arrays are submitted by `hpcasync experiment FILE --slurm submit`; in FILE stand name, "
            "base (the configuration), workers and, below axes, lists of values by key: see docs/experiments.md"
        )


_OPTIONS = (
    click.option("-N", "--nodes", default=1, show_default=True, type=_COUNT, help="Nodes of the training job."),
    click.option("--ntasks-per-node", "tasks_per_node", type=_COUNT, help="Ranks on a node; default: a worker for each "
                 "GPU, or one, and the servers beside them."),
    click.option("-c", "--cpus-per-task", type=_COUNT, help="CPUs of a rank; default: 1, or 3 where there are GPUs."),
    click.option("--gpus-per-node", "--gpus", default=0, type=Count(min=0), help="GPUs of a node."),
    click.option("--servers", type=_COUNT, help="Servers on all nodes; default: as configured, else one a node."),
    click.option("--server-nodes", default=0, type=Count(min=0), help="Nodes of their own for the servers: a "
                 "heterogeneous job."),
    click.option("--server-partition", default="", help="Partition of those nodes."),
    click.option("-t", "--time", default="", help="Time limit, as sbatch takes it."),
    click.option("-p", "--partition", default="", help="As sbatch takes it; so --account, --mem and --constraint."),
    click.option("-A", "--account", default=""),
    click.option("--mem", "memory", default=""),
    click.option("-C", "--constraint", default=""),
    click.option("--gres", default="", help="In the place of --gpus-per-node, for example gpu:a100:4."),
    click.option("-q", "--qos", default="", help="As sbatch takes it, for all jobs; so --reservation and --mail-type."),
    click.option("--reservation", default=""),
    click.option("--mail-type", default=""),
    click.option("--mail-user", default=""),
    click.option("--sbatch", "others", default="", help="Any other options of sbatch for all jobs, in quotes."),
    click.option("--requeue/--no-requeue", default=True, show_default=True, help="Whether SLURM may start it again."),
    click.option("--chain", default="train", show_default=True, help=f"Jobs, each after the one before it has ended "
                 f"well: {','.join(KINDS)}."),
    click.option("--prepare", default="", help="Arguments of `hpcasync data prepare` but for --out, in quotes."),
    click.option("--evaluate", default="", help="Arguments of `hpcasync evaluate RUN_DIR --all`, in quotes."),
    click.option("--array", hidden=True, expose_value=False, callback=_refuse_array),
)  # fmt: skip


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    return click.argument("config", type=FILE)(overrides(command))


@click.group()
def slurm() -> None:
    """Batch scripts from a configuration: printed, or submitted."""


@slurm.command("render")
@_with_options
def render_scripts(config: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Print the batch scripts for the YAML file CONFIG, with KEY=VALUE overrides. Asks no SLURM whether they fit."""
    click.echo("\n".join(render(job, scripts_directory()) for job in _plan(config, overrides, options)), nl=False)


@slurm.command()
@_with_options
@click.option("--check", "is_check", is_flag=True, help="Only find out whether the jobs fit this cluster.")
def submit(config: Path, overrides: tuple[str, ...], is_check: bool, **options: Any) -> None:
    """Submit the batch scripts for the YAML file CONFIG, with KEY=VALUE overrides, after a check that they fit."""
    jobs = _plan(config, overrides, options)
    check_jobs(jobs)
    for job in jobs:
        for note in job.notes:
            click.echo(f"{job.name}: {note}")
    if is_check:
        click.echo(f"{len(jobs)} job(s) fit this cluster")
        return
    for job, job_id in zip(jobs, submit_jobs(jobs, scripts_directory()), strict=True):
        click.echo(f"Submitted {job.kind} as job {job_id}: {job.name}")


def _plan(config: Path, overrides: tuple[str, ...], options: dict[str, Any]) -> tuple[BatchJob, ...]:
    chain = options.pop("chain")
    if options["time"]:
        parse_time(options["time"])
    names = ("qos", "reservation", "mail_type", "mail_user")
    extra = [f"--{name.replace('_', '-')}={value}" for name in names if (value := options.pop(name))]
    extra += whole_options(_words("--sbatch", options.pop("others")))
    if options["gres"] and not options["gpus_per_node"]:
        options["gpus_per_node"] = gpus_of_gres(options["gres"])
    request = Request(
        extra=tuple(extra),
        chain=_kinds(chain),
        prepare=_words("--prepare", options.pop("prepare")),
        evaluate=_words("--evaluate", options.pop("evaluate")),
        **options,
    )
    return plan_jobs(config, overrides, request)


def _kinds(chain: str) -> tuple[Kind, ...]:
    names = {str(kind): kind for kind in KINDS}
    for name in chain.split(","):
        if name not in names:
            raise UserError(f"--chain {chain}: there is no job {name!r}; choose from {', '.join(KINDS)}")
    return tuple(names[name] for name in chain.split(","))


def _words(option: str, text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"{option} {text!r}: {error}; quote its words as in a shell") from error
