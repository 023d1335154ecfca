"""Programs that show the curves of runs: TensorBoard, Weights & Biases, MLflow; offline unless told otherwise."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hpcasync.complete_files import write_text_atomically
from hpcasync.config.schema import RunConfig
from hpcasync.extras import lack_of
from hpcasync.runs.files import explain

IDENTITIES_FILE = "trackers.json"


class Tracker(Protocol):
    """Where scalars go besides metrics.jsonl.

    Raises:
        OSError: by every method, where something cannot be written.
    """

    name: str

    def add(self, scalars: dict[str, float], step: int) -> None:
        """Record values by name at a step (number of updates)."""

    def close(self) -> None:
        """Write what has not been written."""


def trackers_of(config: RunConfig, say: Callable[[str], None]) -> list[Tracker]:
    """The trackers that a run is configured with; see `open_trackers`."""
    names = config.logging.chosen_trackers
    if config.logging.tensorboard is not None:
        say(f"logging.tensorboard is the older name of an entry of logging.trackers, which are {list(names)} now")
    return open_trackers(names, config.output_dir, config.name, config.to_dict(), say)


def open_trackers(
    names: tuple[str, ...], run_dir: Path, project: str, configuration: dict[str, Any], say: Callable[[str], None]
) -> list[Tracker]:
    """Open the trackers of a run; one that is not installed or cannot be opened is said, and training goes on.

    Args:
        run_dir: of the run, where all that is written offline lies, and which run of a tracker it is: one that is
            resumed goes on there.
    """
    opened: list[Tracker] = []
    for name in names:
        try:
            opened.append(_open(name, run_dir, project, configuration))
        except ImportError as error:
            say(f"nothing for {name}: {lack_of(error) or error}, or take {name} out of logging.trackers")
        except OSError as error:
            say(f"{name} cannot be written: {explain(error)}; training goes on")
    return opened


def _open(name: str, run_dir: Path, project: str, configuration: dict[str, Any]) -> Tracker:
    if name == "tensorboard":
        from hpcasync.train.records.tensorboard import ScalarFile

        return ScalarFile(run_dir / "tensorboard")
    if name == "wandb":
        from hpcasync.train.records.wandb_run import WandbRun

        return WandbRun(run_dir, project, identity_of(run_dir, "wandb", lambda: uuid.uuid4().hex), configuration)
    from hpcasync.train.records.mlflow_run import MlflowRun

    return MlflowRun(run_dir, project, configuration)


def identity_of(run_dir: Path, tracker: str, make: Callable[[], str]) -> str:
    """What a tracker knows the run by: that of before where the run is resumed, else a new one from `make`."""
    path = run_dir / IDENTITIES_FILE
    known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    if tracker not in known:
        known[tracker] = make()
        write_text_atomically(path, json.dumps(known))
    return known[tracker]
