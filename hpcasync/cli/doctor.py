"""`hpcasync doctor`: what this machine has, what is missing, and what cures it."""

import click


@click.command()
@click.option("--json", "as_json_", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def doctor(ctx: click.Context, as_json_: bool) -> None:
    """Check MPI (with a self-test on two ranks), Horovod, torch, CUDA, SLURM and packages.

    For each lack: what it disables, and what cures it. Exit code 1 if asynchronous training on CPU cannot run.
    """
    # Imported here: `doctor --help` needs none of it.
    from rich.console import Console

    from hpcasync.doctor.check import can_run_main_job
    from hpcasync.doctor.report import as_json, print_table
    from hpcasync.doctor.run import run_checks

    # Progress goes to standard error: the report alone is on standard output.
    with Console(stderr=True).status("checking", spinner="line") as status:
        checks = run_checks(lambda what: status.update(f"checking {what}"))
    if as_json_:
        click.echo(as_json(checks))
    else:
        print_table(checks, Console(highlight=False))
    ctx.exit(0 if can_run_main_job(checks) else 1)
