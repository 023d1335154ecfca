"""The `hpcasync` command: a click group that imports a subcommand only when it is used."""

import importlib
from typing import Any

import click

from hpcasync import __version__
from hpcasync.cli.cores import wait_passively
from hpcasync.extras import lack_of

# name -> (module, attribute, one line for --help). Listing the subcommands must not import torch or MPI.
COMMANDS = {
    "bench": ("hpcasync.cli.bench", "bench", "Measure the engine against the machine and against other ways."),
    "completion": ("hpcasync.cli.completion", "completion", "Print the script that makes a shell complete."),
    "data": ("hpcasync.cli.data", "data", "Fetch and prepare corpora."),
    "demo": ("hpcasync.cli.demo", "demo", "Train sync and async-global on a small corpus and compare them."),
    "doctor": ("hpcasync.cli.doctor", "doctor", "Check this machine: MPI, Horovod, torch, CUDA, SLURM."),
    "evaluate": ("hpcasync.cli.evaluate", "evaluate", "Score translations or the checkpoints of a run."),
    "experiment": ("hpcasync.cli.experiment", "experiment", "Do the runs of an experiment file and report on them."),
    "export": ("hpcasync.cli.export", "export", "Write a model in the format of CTranslate2, Marian or transformers."),
    "launch": ("hpcasync.cli.launch", "launch", "Start an MPI job on this machine with the right mpirun and options."),
    "slurm": ("hpcasync.cli.slurm", "slurm", "Print or submit batch scripts for a configuration."),
    "report": ("hpcasync.cli.report", "report", "Compare runs: a page of plots, a table, a picture."),
    "simulate": ("hpcasync.cli.simulate", "simulate", "Train or plan on any cluster in virtual time."),
    "train": ("hpcasync.cli.train", "train", "Train a model; run it under mpirun or `hpcasync launch`."),
    "translate": ("hpcasync.cli.translate", "translate", "Translate a file or standard input."),
}

# What people start beside other things; the ranks of `train` have, where they can, cores of their own.
_SHARING_COMMANDS = ("translate", "evaluate", "experiment", "export", "simulate")


class LazyGroup(click.Group):
    """A group whose subcommands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in _SHARING_COMMANDS:
            wait_passively()
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand.

        Raises:
            UserError: it needs a package of an extra that is not installed.
        """
        try:
            return super().invoke(ctx)
        except ImportError as error:
            raise lack_of(error) or error from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hpcasync")
def cli() -> None:
    """Train neural networks asynchronously over MPI: servers own parameters, workers never wait for each other."""
