"""The mpirun line for the machine that this process runs on."""

import os
from collections.abc import Mapping, Sequence

from hpcasync.launch.locate import find_launcher
from hpcasync.launch.mpirun import JobLine, Launcher, job_line
from hpcasync.launch.shared_memory import free_shared_memory_bytes


def job_line_here(
    num_ranks: int,
    program: Sequence[str],
    *,
    environment: Mapping[str, str],
    options: Sequence[str] = (),
    launcher: Launcher | None = None,
    survive_workers: bool = False,
) -> JobLine:
    """Build the line with the mpirun and the needs of this machine; see `hpcasync.launch.mpirun.job_line`.

    Raises:
        UserError: no mpirun belongs to mpi4py's MPI library, or it cannot do what is asked.
    """
    return job_line(
        launcher or find_launcher(),
        num_ranks,
        program,
        environment=environment,
        is_root=os.geteuid() == 0,
        shared_memory_bytes=free_shared_memory_bytes(),
        options=options,
        survive_workers=survive_workers,
    )
