"""Runs as tasks of SLURM arrays: a file of settings per number of ranks, and the sbatch line that takes it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcasync.errors import UserError
from hpcasync.experiment.plan import PlannedRun
from hpcasync.experiment.schema import Experiment
from hpcasync.experiment.status import Status

_SWEEP_SCRIPT = Path(__file__).parents[2] / "slurm" / "sweep.sbatch"


@dataclass(frozen=True)
class Array:
    """Runs with the same number of ranks.

    Attributes:
        num_ranks: of each run.
        settings_file: read by slurm/sweep.sbatch; line N is task N.
        lines: what to write into it.
        command: the sbatch line.
    """

    num_ranks: int
    settings_file: Path
    lines: tuple[str, ...]
    command: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.command)


def make_arrays(experiment: Experiment, work: Sequence[tuple[PlannedRun, Status]], directory: Path) -> list[Array]:
    """Arrays for runs that are to be done.

    Args:
        experiment: of the runs.
        work: the runs with where they stand.
        directory: of the experiment, on a file system that the nodes share.

    Raises:
        UserError: the runs are simulated, their ranks cannot be dealt out evenly to the nodes, or the batch scripts are
            not there.
    """
    if experiment.run == "simulated":
        raise UserError("--slurm is for real runs: a simulation needs no cluster, leave --slurm out")
    if not _SWEEP_SCRIPT.is_file():
        raise UserError(
            f"there is no {_SWEEP_SCRIPT}, which --slurm needs: install hpcasync with pip install -e CHECKOUT"
        )
    by_ranks: dict[int, list[tuple[PlannedRun, Status]]] = {}
    for run, status in work:
        by_ranks.setdefault(run.num_ranks, []).append((run, status))
    return [_array(experiment, num_ranks, runs, directory) for num_ranks, runs in sorted(by_ranks.items())]


def settings_line(run: PlannedRun, status: Status) -> str:
    """A run's settings, with blanks between them and none inside.

    Raises:
        UserError: a value has a blank.
    """
    for override in run.overrides:
        if len(override.split()) != 1:
            raise UserError(f"run {run.name}: {override!r} has a blank, which a line of a SLURM array cannot hold")
    flags = {Status.INTERRUPTED: ["--resume"], Status.BROKEN_OFF: ["--overwrite"]}.get(status, [])
    return " ".join([*run.overrides, *flags])


def _array(experiment: Experiment, num_ranks: int, work: Sequence[tuple[PlannedRun, Status]], directory: Path) -> Array:
    nodes = experiment.slurm.nodes
    if num_ranks % nodes:
        raise UserError(
            f"run {work[0][0].name} has {num_ranks} ranks, which {nodes} nodes (slurm.nodes) cannot share evenly: "
            "change workers, roles.servers or slurm.nodes"
        )
    file = directory / f"settings-{num_ranks}-ranks.txt"
    return Array(
        num_ranks,
        file,
        tuple(settings_line(run, status) for run, status in work),
        (
            "sbatch", "--parsable", "--array", f"1-{len(work)}", "--nodes", str(nodes),
            "--ntasks-per-node", str(num_ranks // nodes), "--output", str(directory / "logs" / "%x-%A_%a.out"),
            *experiment.slurm.options, _shown(_SWEEP_SCRIPT), str(experiment.base), str(file),
        ),
    )  # fmt: skip


def _shown(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
