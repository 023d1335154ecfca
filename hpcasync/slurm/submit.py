"""Submitting jobs: all are checked before the first, and none stays behind when a later one is refused."""

import dataclasses
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcasync.errors import UserError
from hpcasync.slurm.environment import without_job
from hpcasync.slurm.partition import SINFO, check_fit, parse_sinfo
from hpcasync.slurm.script import BatchJob, render
from hpcasync.slurm.times import parse_time

_TIMEOUT_SECONDS = 60
# SLURM's resolution of the warning (`man sbatch`, --signal).
_EARLY_SECONDS = 60


def check_jobs(jobs: Sequence[BatchJob], environment: Mapping[str, str] = os.environ) -> None:
    """Refuse jobs that the cluster can never start, going by its `sinfo` and by SBATCH_* of the environment."""
    partitions = parse_sinfo(_run(SINFO))
    for job in jobs:
        for component in job.components:
            partition = component.partition or environment.get("SBATCH_PARTITION", "")
            wanted = dataclasses.replace(component, partition=partition)
            try:
                _check_warning(job, environment)
                check_fit(wanted, job.time or environment.get("SBATCH_TIMELIMIT", ""), partitions)
            except UserError as error:
                raise UserError(f"the job {job.name} cannot start: {error}") from error


def _check_warning(job: BatchJob, environment: Mapping[str, str]) -> None:
    """A job that is warned of its end as soon as it starts would be requeued for ever."""
    text = job.time or environment.get("SBATCH_TIMELIMIT", "")
    seconds = parse_time(text) if text else None
    earliest = job.signal_seconds + _EARLY_SECONDS
    if job.signal_seconds and seconds is not None and seconds <= earliest:
        raise UserError(
            f"--time {text} leaves no time to train: SLURM warns {job.signal_seconds} s before the limit, or up to "
            f"{_EARLY_SECONDS} s earlier, and the job then saves and ends; give more than {earliest // 60} minutes"
        )


def submit_jobs(jobs: Sequence[BatchJob], scripts: Path) -> list[str]:
    """Submit each job to begin when the one before it has ended well; returns their ids."""
    ids: list[str] = []
    before: BatchJob | None = None
    for job in jobs:
        options = dependency(before, job, ids[-1]) if before and ids else []
        try:
            printed = _run(["sbatch", "--parsable", *options], render(job, scripts), _environment(job))
        except UserError as error:
            if ids:
                _run(["scancel", *ids])
            raise UserError(f"{error}; none of the {len(jobs)} job(s) is left") from error
        ids.append(printed.strip().partition(";")[0])
        before = job
    return ids


def dependency(before: BatchJob, job: BatchJob, job_id: str) -> list[str]:
    """Options of sbatch: begin after another job; task by task where both are arrays; never, if that one fails."""
    kind = "aftercorr" if before.settings and job.settings else "afterok"
    return [f"--dependency={kind}:{job_id}", "--kill-on-invalid-dep=yes"]


def _environment(job: BatchJob) -> dict[str, str]:
    """Without variables that would win over what the script says, and without those of a job that this runs in."""
    component = job.components[0]
    said = {
        "SBATCH_PARTITION": component.partition,
        "SBATCH_ACCOUNT": component.account,
        "SBATCH_MEM_PER_NODE": component.memory,
        "SBATCH_CONSTRAINT": component.constraint,
        "SBATCH_TIMELIMIT": job.time,
        "SBATCH_ARRAY_INX": "array" if job.settings else "",
        "SBATCH_REQUEUE": "requeue",
        "SBATCH_NO_REQUEUE": "requeue",
        "SBATCH_GRES": component.gres,
    }
    said |= {f"SBATCH_{option[2:].partition('=')[0].replace('-', '_').upper()}": option for option in component.extra}
    return {name: value for name, value in without_job().items() if not said.get(name)}


def _run(command: Sequence[str], text: str = "", environment: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, env=environment
        )
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {command[0]} on PATH: submitting needs SLURM's commands; `hpcasync slurm render`, or "
            "`hpcasync experiment --slurm print`, prints the scripts without"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} gave no answer for {_TIMEOUT_SECONDS} s: is slurmctld running?") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise UserError(f"{command[0]} refused: {said}")
    return done.stdout
