"""Where a planned run stands, by what is in its directory."""

import enum
import json
from pathlib import Path
from typing import Any

import yaml

from hpcasync.complete_files import list_complete
from hpcasync.config.strict import flatten
from hpcasync.errors import UserError, describe
from hpcasync.exit_codes import DIVERGED, PREEMPTED
from hpcasync.experiment.plan import PlannedRun
from hpcasync.runs.records import evaluation_file

# What a machine or a person who watches may change between one start of a run and the next.
_MAY_DIFFER = ("logging.", "checkpoint.", "roles.server_threads", "roles.worker_threads", "device", "validation.device")
# Stands for what a simulation found out.
_MEASURED = "measured"


class Status(enum.Enum):
    """What is to be done with a run."""

    NEW = "new"
    FINISHED = "finished"
    UNSCORED = "finished, to be scored"
    INTERRUPTED = "interrupted, goes on from its checkpoint"
    BROKEN_OFF = "interrupted before its first checkpoint, begins again"


def status_of(run: PlannedRun, *, split: str = "none") -> Status:
    """Look at the run directory.

    Args:
        split: text on which its best snapshot is to be scored in the end, or "none".

    Raises:
        UserError: the directory holds a run with other settings.
    """
    directory = run.config.output_dir
    if not (directory / "config.yaml").is_file():
        return Status.NEW
    _check_same(run)
    exit_code = _exit_code(directory / "summary.json")
    if exit_code not in (None, PREEMPTED):
        is_scored = split == "none" or (directory / evaluation_file(split)).is_file()
        return Status.FINISHED if is_scored or exit_code == DIVERGED else Status.UNSCORED
    return Status.INTERRUPTED if list_complete(directory / "checkpoints") else Status.BROKEN_OFF


def _exit_code(summary: Path) -> int | None:
    """That of a run that has written its summary."""
    if not summary.is_file():
        return None
    try:
        return int(json.loads(summary.read_text()).get("exit_code", 0))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {summary}: {describe(error, 'remove it, and the run goes on')}") from error


def _check_same(run: PlannedRun) -> None:
    directory = run.config.output_dir
    differences = _differences(directory / "config.yaml", run.config.to_dict())
    if run.cluster is not None:
        differences += _differences(directory / "cluster.yaml", run.cluster.to_dict())
    if differences:
        shown = "; ".join(differences[:3]) + ("; …" if len(differences) > 3 else "")
        raise UserError(
            f"{directory} holds a run with other settings ({shown}): set what it has, give the experiment another "
            "name, or remove that directory"
        )


def _differences(path: Path, planned: dict[str, Any]) -> list[str]:
    try:
        found = flatten(yaml.safe_load(path.read_text()))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"cannot read {path}: {describe(error, f'remove {path.parent}, and the run begins again')}"
        ) from error
    return [
        f"{key}={_show(found[key])} there, {_show(value)} here"
        for key, value in flatten(planned).items()
        if key in found and found[key] != value and value != _MEASURED and not key.startswith(_MAY_DIFFER)
    ]


def _show(value: Any) -> str:
    return "none" if value is None else str(value)
