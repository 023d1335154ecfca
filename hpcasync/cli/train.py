"""`hpcasync train`: one training run on all ranks of an MPI job."""

from pathlib import Path

import click

from hpcasync.cli.imports import importing
from hpcasync.cli.parameters import FILE
from hpcasync.config.schema import load_config
from hpcasync.train.supervise.stop_signals import note_stop_signals


def _print_keys(ctx: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        from hpcasync.config.reference import all_keys

        for key in all_keys():
            click.echo(f"{key.name} (default: {key.default})\n    {key.description}")
        ctx.exit()


@click.command()
@click.argument("config", type=FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--keys", is_flag=True, is_eager=True, expose_value=False, callback=_print_keys, help="List all keys.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of this run.")
@click.option(
    "--resume-from",
    type=FILE,
    metavar="RUN_DIR",
    help="Go on from the newest checkpoint of another run, such as one of another mode, which stays as it is. "
    "With --resume: unless this run has a checkpoint of its own.",
)
@click.option("--overwrite", is_flag=True, help="Remove an earlier run of the same name, mode and seed.")
@click.option("--dry-run", is_flag=True, help="Print sizes and the expected duration; write nothing.")
def train(
    config: Path,
    overrides: tuple[str, ...],
    resume: bool,
    resume_from: Path | None,
    overwrite: bool,
    dry_run: bool,
) -> int:
    """Train a model as the YAML file CONFIG says, with dotted KEY=VALUE overrides.

    Start it on several ranks: `mpirun --oversubscribe -np 3 hpcasync train configs/base.yaml data.path=data/mine`, or
    `hpcasync launch -n 3 -- train …`, which knows what one machine needs.
    """
    note_stop_signals()
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    resolved = load_config(config, overrides)
    if dry_run:
        from hpcasync.train.dry_run import show_run

        show_run(resolved)
        return 0
    with importing():
        from hpcasync.train.job import run_training  # starts MPI: not before the configuration is valid
    return run_training(resolved, resume=resume, resume_from=resume_from, overwrite=overwrite)
