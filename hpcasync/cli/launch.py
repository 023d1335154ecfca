"""`hpcasync launch`: start an MPI job on this machine."""

import difflib
import sys
from typing import Any

import click

from hpcasync.errors import UserError

_OWN_OPTIONS_WITH_VALUE = ("-n", "-np", "--np", "--ranks")
_OWN_FLAGS = ("--dry-run", "-h", "--help")
_COMMAND_KEY = "hpcasync.launch.command"
_OPTIONS_KEY = "hpcasync.launch.options"


class LaunchCommand(click.Command):
    """A command whose arguments before `--` are its own options or mpirun's, and after it another command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the options of `launch` for click; see `split_arguments`."""
        own, options, command = split_arguments(args)
        ctx.meta[_OPTIONS_KEY], ctx.meta[_COMMAND_KEY] = options, command
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
        if option.partition("=")[0] in _OWN_OPTIONS_WITH_VALUE:
            taken = 1 if "=" in option else 2
            own += head[position : position + taken]
            position += taken
        else:
            (own if option in _OWN_FLAGS else options).append(option)
            position += 1
    return own, options, command


@click.command(cls=LaunchCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("num_ranks", "-n", "-np", "--np", "--ranks", type=click.IntRange(min=1), required=True, metavar="RANKS",
              help="Ranks to start: servers and workers together.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the mpirun line and start nothing.")
@click.pass_context
def launch(ctx: click.Context, num_ranks: int, dry_run: bool) -> None:
    """Start an hpcasync command on several MPI ranks.

    Finds the mpirun that belongs to mpi4py's MPI library, adds what one machine needs (more ranks than cores, running
    as root, no binding to single cores), prints the line, and passes signals and the exit code through. Other options
    before `--` go to mpirun.

    Example: hpcasync launch -n 5 -- train configs/multi30k.yaml mode=async-global
    """
    _check_command(ctx.meta[_COMMAND_KEY])
    _check_not_inside_a_job()
    # Imported here: `launch --help` needs none of it.
    from hpcasync.launch.here import job_line_here
    from hpcasync.launch.process import environment_of_ranks, supervise

    environment = environment_of_ranks()
    program = [sys.executable, "-m", "hpcasync", *ctx.meta[_COMMAND_KEY]]
    line = job_line_here(num_ranks, program, environment=environment, options=ctx.meta[_OPTIONS_KEY])
    click.echo(line, err=True)
    if not dry_run:
        sys.exit(supervise(line, environment))


def _check_command(command: list[str]) -> None:
    from hpcasync.cli.main import COMMANDS

    example = "hpcasync launch -n 3 -- train configs/multi30k.yaml"
    if not command:
        raise UserError(f"launch needs `--` and an hpcasync command after its options, for example: {example}")
    if command[0] not in COMMANDS:
        near: list[Any] = difflib.get_close_matches(command[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"for example: {example}"
        raise UserError(f"launch: {command[0]!r} after `--` is no hpcasync command; {hint}")


def _check_not_inside_a_job() -> None:
    from hpcasync.launch.ranks import rank_from_environment

    if rank := rank_from_environment():
        raise UserError(
            f"`hpcasync launch` starts mpirun itself, and this is {rank} already: leave out either mpirun or `launch`",
            everywhere=True,
        )
