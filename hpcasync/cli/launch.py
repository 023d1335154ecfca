"""`hpcasync launch`: start an MPI job on this machine: a command of hpcasync, or any program."""

import difflib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcasync.cli.parameters import Count
from hpcasync.deaths import lifeline
from hpcasync.errors import UserError

if TYPE_CHECKING:
    from hpcasync.launch.mpirun import JobLine

_OWN_OPTIONS_WITH_VALUE = ("-n", "-np", "--np", "--ranks", "--max-restarts")
_OWN_FLAGS = ("--dry-run", "--survive-workers", "-h", "--help")
_COMMAND_KEY = "hpcasync.launch.command"
_OPTIONS_KEY = "hpcasync.launch.options"
_WORDS_KEY = "hpcasync.launch.words"


class LaunchCommand(click.Command):
    """A command whose arguments before `--` are its own options or mpirun's, and after it another command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the options of `launch` for click; see `split_arguments`."""
        own, options, command = split_arguments(args)
        ctx.meta[_OPTIONS_KEY], ctx.meta[_COMMAND_KEY] = options, command
        ctx.meta[_WORDS_KEY] = ["launch", *(args[: args.index("--")] if "--" in args else args)]
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The usage line of --help."""
        return ["-n RANKS [MPIRUN OPTIONS] -- COMMAND [ARGUMENTS]"]


def split_arguments(args: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Tell apart what `launch` reads itself, options for mpirun, and the command after `--`.

    Click cannot: it does not know which of mpirun's options take values, and would read `-np` or `-genv` as `-n`.
    """
    head, command = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
    own: list[str] = []
    options: list[str] = []
    position = 0
    while position < len(head):
        option = head[position]
        is_short = option.startswith("-n") and option[2:].isdecimal()  # -n5
        if is_short or option.partition("=")[0] in _OWN_OPTIONS_WITH_VALUE:
            taken = 1 if "=" in option or is_short else 2
            own += head[position : position + taken]
            position += taken
        else:
            (own if option in _OWN_FLAGS else options).append(option)
            position += 1
    return own, options, command


@click.command(cls=LaunchCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("num_ranks", "-n", "-np", "--np", "--ranks", type=Count(min=1), required=True, metavar="RANKS",
              help="Ranks to start: servers and workers together.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the mpirun line and start nothing.")
@click.option("max_restarts", "--max-restarts", type=Count(min=0), default=0, metavar="K",
              help="`train` only: go on from the newest checkpoint when the job dies, at most K times.")  # fmt: skip
@click.option("--survive-workers", is_flag=True,
              help="`train` and joined programs, Open MPI, one host: go on without workers that die.")  # fmt: skip
@click.pass_context
def launch(ctx: click.Context, num_ranks: int, dry_run: bool, max_restarts: int, survive_workers: bool) -> int:
    """Start an hpcasync command, or any program, on several MPI ranks.

    Finds the mpirun that belongs to mpi4py's MPI library, adds what one machine needs (more ranks than cores, running
    as root, no binding to single cores), prints the line, and passes signals and the exit code through. `train` saves
    a checkpoint when INT or TERM asks it to end. Other options before `--` go to mpirun.

    Examples: hpcasync launch -n 5 --max-restarts 3 -- train configs/multi30k.yaml mode=async-global;
    hpcasync launch -n 3 -- python my.py, where an exception on one rank ends them all, as under `python -m mpi4py`.
    """
    options = ctx.meta[_OPTIONS_KEY]
    command, program = _resolve(ctx.meta[_COMMAND_KEY])
    is_training = command[:1] == ["train"] and program is None
    for option, is_given, knows_how in (
        ("--max-restarts", max_restarts, is_training),
        ("--survive-workers", survive_workers, is_training or program is not None),
    ):
        if is_given and not knows_how:
            raise UserError(f"{option} is for `train`, which knows how to go on; {command[0]} does not: leave it out")
    _check_not_inside_a_job()
    # Imported here: `launch --help` needs none of it.
    from hpcasync.deaths.lifeline_hub import Lifelines
    from hpcasync.launch.here import job_line_here
    from hpcasync.launch.mpirun import may_span_hosts
    from hpcasync.launch.process import environment_of_ranks, is_terminal
    from hpcasync.launch.restarts import run_with_restarts
    from hpcasync.launch.standard_input import offered_input
    from hpcasync.launch.supervision import SupervisedJob, supervise

    def make_line(arguments: list[str], environment: dict[str, str]) -> "JobLine":
        line = job_line_here(
            num_ranks,
            program or [sys.executable, "-m", "hpcasync", *arguments],
            environment=environment,
            options=options,
            survive_workers=survive_workers,
        )
        click.echo(line, err=True)
        return line

    def start(arguments: list[str]) -> SupervisedJob:
        lifelines = Lifelines(num_ranks, is_local=not may_span_hosts(options, os.environ))
        environment = {**environment_of_ranks(), **offered_input(), lifeline.VARIABLE: str(lifelines.address)}
        return supervise(
            make_line(arguments, environment),
            environment,
            lifelines,
            saves_on_usr1=is_training,
            has_live_line=is_terminal() and program is None,
        )

    if dry_run:
        make_line(command, environment_of_ranks())
        return 0
    if not is_training:
        return start(command).exit_code
    before = [*ctx.meta[_WORDS_KEY], "--"]
    return run_with_restarts(start, command, _run_dir(command[1:]), max_restarts, before)


def _run_dir(arguments: list[str]) -> Path | None:
    """The run directory of `train ARGUMENTS`; None where they are wrong, which train itself says better."""
    from hpcasync.cli.train import train
    from hpcasync.config.schema import load_config

    try:
        values = train.make_context("train", list(arguments), resilient_parsing=True).params
        return load_config(values["config"], tuple(values["overrides"])).output_dir
    except (UserError, click.ClickException, TypeError, AttributeError):
        return None


def _resolve(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The command of hpcasync that `words` are, and for any other program what each rank starts."""
    from hpcasync.cli.main import COMMANDS
    from hpcasync.launch.program import command_of_ranks

    own = words[1:] if words[:1] == ["hpcasync"] else words
    example = "hpcasync launch -n 3 -- train configs/multi30k.yaml"
    if not own:
        raise UserError(f"launch needs `--` and a command after its options, for example: {example}")
    if own[0] in COMMANDS:
        return own, None
    if own is words and (program := command_of_ranks(words)):
        return words, program
    near: list[Any] = difflib.get_close_matches(own[0], COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"for example: {example}"
    if Path(own[0]).is_file():
        hint = f"it cannot be executed; for Python: python {own[0]}"
    raise UserError(f"launch: {own[0]!r} after `--` is no command of hpcasync and no program on PATH; {hint}")


def _check_not_inside_a_job() -> None:
    from hpcasync.launch.ranks import is_task_of_srun, rank_from_environment

    rank = rank_from_environment()
    if rank and is_task_of_srun():
        raise UserError(
            f"`hpcasync launch` is to be started once, and srun has started {rank.num_ranks} tasks, of which this is "
            f"number {rank.world_rank} (SLURM_STEP_NUM_TASKS={rank.num_ranks}): start it from the batch script or the "
            "shell of salloc itself, or by `srun --pty`; in a shell that has only inherited these "
            "variables: unset SLURM_PROCID SLURM_STEP_NUM_TASKS",
            everywhere=True,
        )
    if rank:
        raise UserError(
            f"`hpcasync launch` starts mpirun itself, and this is {rank} already: leave out either mpirun or `launch`",
            everywhere=True,
        )
