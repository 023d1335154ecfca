"""The last version in every rank's module, once training has ended."""

from typing import Protocol

import torch

from hpcasync.program.snapshot import load_snapshot
from hpcasync.program.task import ProgramTask
from hpcasync.runs.files import read_state
from hpcasync.train.parts import Part
from hpcasync.train.run import Run


class ProgramPart(Part, Protocol):
    """A rank's part in a run of a program.

    Attributes:
        last_version: number of updates in every module once `end` has returned; None where the run goes on later.
    """

    last_version: int | None


def give_last_version(run: Run, task: ProgramTask, vector: torch.Tensor | None, exit_code: int) -> int | None:
    """Bring the coordinator's [num_elements] vector to every rank's module, unless the run goes on later (collective).

    Where workers may have died nothing is collective: ranks, which are on one host then, read the last snapshot.

    Args:
        vector: at the coordinator, which has written a snapshot of it.

    Returns:
        its number of updates; None where the run goes on later.
    """
    if exit_code:
        return None
    if run.ranks.deaths.may_lose_workers:
        directory = run.config.output_dir
        last = load_snapshot(task.model, directory / (directory / "last").read_text().strip())
        return int(read_state(last)["version"])
    version = run.ranks.comm.bcast(run.state.counters.num_updates, root=run.ranks.roles.coordinator_rank)
    if vector is None:
        vector = torch.empty(task.flat.num_elements)
    run.ranks.comm.Bcast(vector.numpy(), root=run.ranks.roles.coordinator_rank)
    task.flat.parameters.copy_(vector)
    return int(version)
