"""What training is told at the first and at later starts of a batch job."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcasync.launch.restarts import arguments_to_go_on


def start_mark(run_dir: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """A file beside a run's directory that says when this job was first started.

    It holds how many starts in a row have brought no checkpoint, and is removed at the job's end (slurm/common.sh).
    """
    return run_dir.parent / f".{run_dir.name}.job-{environment['SLURM_JOB_ID']}"


def flags_of_start(run_dir: Path, given: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """Flags of `hpcasync train`: those given, but after a requeue those that go on from what the job did itself.

    Whatever flags it was submitted with, they must not throw away or refuse that.
    """
    mark = start_mark(run_dir, environment)
    if int(environment.get("SLURM_RESTART_COUNT") or 0) and mark.exists():
        return arguments_to_go_on(given, run_dir, mark.stat().st_mtime)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return list(given)
