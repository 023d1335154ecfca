"""The text of a batch script: a pure function of what a job is."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from hpcasync.errors import UserError
from hpcasync.slurm.resources import Resources

# Stands in a command for the settings of the array's task; no file and no setting has this name.
SETTINGS_WORD = "\0settings"
# Before the end of a training job: enough for a checkpoint, also of a large model to a slow disk.
WARNING_SECONDS = 120


@dataclass(frozen=True)
class BatchJob:
    """A job to submit.

    Attributes:
        kind: "prepare", "train" or "evaluate".
        name: of the job, and of its log.
        components: what it asks for; more than one: a heterogeneous job.
        command: words of a command, which may be a function of slurm/common.sh.
        settings: for an array, the settings of each task, from index 1 on; empty: no array.
        time: time limit as SLURM writes it; empty: the partition's.
        requeue: whether SLURM may start it again.
        signal_seconds: how long before its end SLURM warns it with USR1; 0: not at all.
        notes: comments at its beginning: what was decided.
    """

    kind: str
    name: str
    components: tuple[Resources, ...]
    command: tuple[str, ...]
    settings: tuple[tuple[str, ...], ...] = ()
    time: str = ""
    requeue: bool = True
    signal_seconds: int = 0
    notes: tuple[str, ...] = ()


def scripts_directory() -> Path:
    """Where common.sh and site.sh are: in a checkout."""
    scripts = Path(__file__).resolve().parents[2] / "slurm"
    if not (scripts / "common.sh").is_file():
        raise UserError(
            f"there is no {scripts}/common.sh, which batch scripts need: install hpcasync with pip install -e CHECKOUT"
        )
    return scripts


def render(job: BatchJob, scripts: Path) -> str:
    """The batch script of a job; `scripts` is the directory of common.sh and site.sh."""
    lines = ["#!/bin/bash", f"# {job.kind}: made by `hpcasync`; what a site needs stands in slurm/site.sh."]
    lines += [f"# {note}" for note in job.notes]
    lines += [f"#SBATCH {shlex.quote(option)}" for option in _first_options(job)]
    for position, component in enumerate(job.components):
        if position:
            lines.append("#SBATCH hetjob")
        lines += [f"#SBATCH {shlex.quote(option)}" for option in component.options()]
    lines += ["", f"source {shlex.quote(str(scripts / 'common.sh'))} || exit", "prepare_environment"]
    if job.settings:
        lines += _choice(job.settings)
    return "\n".join([*lines, " ".join(map(_quoted, job.command)), ""])


def _quoted(word: str) -> str:
    return '"${settings[@]}"' if word == SETTINGS_WORD else shlex.quote(word)


def _first_options(job: BatchJob) -> list[str]:
    log = "%x-%A_%a.out" if job.settings else "%x-%j.out"
    options = [f"--job-name={job.name}", f"--output={log}", "--open-mode=append"]
    options.append("--requeue" if job.requeue else "--no-requeue")
    if job.signal_seconds:
        options.append(f"--signal=B:USR1@{job.signal_seconds}")
    if job.time:
        options.append(f"--time={job.time}")
    if job.settings:
        options.append(f"--array=1-{len(job.settings)}")
    return options


def _choice(settings: tuple[tuple[str, ...], ...]) -> list[str]:
    lines = ["case $SLURM_ARRAY_TASK_ID in"]
    lines += [f"    {index}) settings=({shlex.join(words)}) ;;" for index, words in enumerate(settings, start=1)]
    return [*lines, '    *) fail "this array has no task $SLURM_ARRAY_TASK_ID" ;;', "esac"]
