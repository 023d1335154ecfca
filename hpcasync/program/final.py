"""The last version in every rank's module, once training has ended."""

import torch

from hpcasync.program.snapshot import load_snapshot
from hpcasync.program.task import ProgramTask
from hpcasync.train.run import Run


def give_last_version(run: Run, task: ProgramTask, vector: torch.Tensor | None, exit_code: int) -> None:
    """Bring the coordinator's [num_elements] vector to every rank's module, unless the run goes on later (collective).

    Where workers may have died nothing is collective: ranks, which are on one host then, read the last snapshot.

    Args:
        vector: at the coordinator, which has written a snapshot of it.
    """
    if exit_code:
        return
    if run.ranks.deaths.may_lose_workers:
        directory = run.config.output_dir
        load_snapshot(task.model, directory / (directory / "last").read_text().strip())
        return
    if vector is None:
        vector = torch.empty(task.flat.num_elements)
    run.ranks.comm.Bcast(vector.numpy(), root=run.ranks.roles.coordinator_rank)
    task.flat.parameters.copy_(vector)
