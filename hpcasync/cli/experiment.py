"""`hpcasync experiment`: the runs of an experiment file, and what they came to."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcasync.cli.cores import usable_cores
from hpcasync.cli.parameters import FILE, Count
from hpcasync.errors import UserError, describe
from hpcasync.sole_writer import sole_writer

if TYPE_CHECKING:
    from hpcasync.experiment.execute import Outcome
    from hpcasync.experiment.plan import PlannedRun
    from hpcasync.experiment.schema import Experiment
    from hpcasync.experiment.status import Status


@click.command()
@click.argument("file", type=FILE)
@click.option("--dry-run", is_flag=True, help="List the runs and where they stand; start nothing.")
@click.option("--jobs", default=1, show_default=True, type=Count(min=0),
              help="Runs at a time; 0: as many as have a core for each rank.")  # fmt: skip
@click.option("--collect", "is_collecting", is_flag=True, help="Start nothing: table and report of what is there.")
@click.option("--slurm", type=click.Choice(["print", "submit"]), help="As SLURM arrays: print or submit their scripts.")
def experiment(file: Path, dry_run: bool, jobs: int, is_collecting: bool, slurm: str | None) -> None:
    """Do the runs that FILE describes, then print a table and write a report.

    Runs that have ended are left as they are, interrupted ones go on from their last checkpoint: give the same command
    again. Runs beside each other on one machine disturb each other's times: to compare times, leave --jobs at 1.
    """
    if sum([dry_run, is_collecting, slurm is not None]) > 1:
        raise click.UsageError("--dry-run, --collect and --slurm exclude each other")
    from hpcasync.experiment.plan import experiment_directory, plan_runs
    from hpcasync.experiment.schema import load_experiment
    from hpcasync.experiment.status import status_of

    described = load_experiment(file)
    runs = plan_runs(described)
    if is_collecting:
        _finish(described, runs)
        return
    if dry_run:
        _list([(run, status_of(run, split=described.evaluate)) for run in runs])
        return
    with sole_writer(experiment_directory(described), "wait until that has ended, or end it, or set another name"):
        _carry_on(described, runs, jobs, slurm)


def _carry_on(described: "Experiment", runs: "list[PlannedRun]", jobs: int, slurm: str | None) -> None:
    """Start what has not ended."""
    from hpcasync.experiment.plan import experiment_directory
    from hpcasync.experiment.status import Status, status_of

    work = [(run, status_of(run, split=described.evaluate)) for run in runs]
    todo = [(run, status) for run, status in work if status is not Status.FINISHED]
    click.echo(f"{described.name}: {len(runs)} runs, {len(runs) - len(todo)} of them finished before")
    if slurm is not None:
        _submit(described, todo, experiment_directory(described), is_submitting=slurm == "submit")
        return
    failed = _execute(described, todo, jobs) if todo else []
    _finish(described, runs)
    if failed:
        for outcome in failed:
            what = "interrupted" if outcome.is_interrupted else "failed"
            click.echo(f"{what}: {outcome.run.name}: {outcome.reason} (log {outcome.log})", err=True)
        raise UserError(f"{len(failed)} of {len(runs)} runs have not ended; the same command goes on with them")


def _list(work: "list[tuple[PlannedRun, Status]]") -> None:
    width = max(len(run.name) for run, _ in work)
    for run, status in work:
        click.echo(f"{run.name:{width}}  {run.num_ranks:>3} ranks  {status.value}")
        click.echo(f"{'':{width}}  {' '.join((*run.overrides, *(f'cluster.{s}' for s in run.cluster_overrides)))}")
    click.echo(f"{len(work)} runs")


def _execute(described: "Experiment", todo: "Sequence[tuple[PlannedRun, Status]]", jobs: int) -> "list[Outcome]":
    from hpcasync.experiment.execute import Executor, choose_jobs, commands, threads_of
    from hpcasync.experiment.plan import experiment_directory

    num_cores = usable_cores()
    jobs = choose_jobs(jobs, [run for run, _ in todo], num_cores)
    work = [(run, commands(described, run, status, threads_of(run, jobs, num_cores))) for run, status in todo]
    outcomes = Executor(experiment_directory(described) / "logs", jobs, click.echo).run_all(work)
    return [outcome for outcome in outcomes if outcome.is_failed]


def _finish(described: "Experiment", runs: "list[PlannedRun]") -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    from hpcasync.experiment.outcome import collect, make_table, write_outcome
    from hpcasync.experiment.plan import experiment_directory

    report = collect(described, runs)
    if report is None:
        click.echo("no run has left any record yet")
        return
    table = make_table(report, runs)
    shown = RichTable(box=None, pad_edge=False)
    for number, title in enumerate(table.titles):
        shown.add_column(title, justify="left" if number == 0 else "right", no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    Console(width=200, highlight=False).print(shown)
    for path in write_outcome(described, report, table, runs, experiment_directory(described)):
        click.echo(path)


def _submit(
    described: "Experiment", todo: "Sequence[tuple[PlannedRun, Status]]", directory: Path, *, is_submitting: bool
) -> None:
    from hpcasync.experiment.array import make_chains
    from hpcasync.slurm.script import render, scripts_directory
    from hpcasync.slurm.submit import submit_jobs

    chains = make_chains(described, todo, directory)
    try:
        (directory / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {describe(error, 'name another place')}") from error
    scripts = scripts_directory()
    for chain in chains:
        if not is_submitting:
            click.echo("\n".join(render(job, scripts) for job in chain))
            continue
        for job, job_id in zip(chain, submit_jobs(chain, scripts), strict=True):
            click.echo(f"submitted: array {job_id}, {job.kind} of {len(job.settings)} run(s): {job.name}")
    click.echo("afterwards: the same command with --collect for the table and the report")
