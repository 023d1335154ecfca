"""Scalars for Weights & Biases: in RUN_DIR/wandb, for `wandb sync`, unless WANDB_MODE says otherwise."""

import os
from pathlib import Path
from typing import Any

import wandb


class WandbRun:
    """A run of W&B.

    Args:
        identity: by which a resumed run goes on as the same one, also where both parts are synced later.

    Raises:
        OSError: by every method, where it cannot be written.
    """

    name = "wandb"

    def __init__(self, run_dir: Path, project: str, identity: str, configuration: dict[str, Any]) -> None:
        mode = os.environ.get("WANDB_MODE") or "offline"
        # Records alone: standard output, source and the machine's state are the run's own affair.
        settings = wandb.Settings(console="off", quiet=True, silent=True, x_disable_stats=True, disable_git=True)
        try:
            self._run = wandb.init(
                project=project,
                name=run_dir.name,
                id=identity,
                resume="allow" if mode == "online" else None,
                dir=run_dir,
                mode=mode,  # type: ignore[arg-type]
                config=configuration,
                settings=settings,
            )
        except wandb.Error as error:
            raise OSError(str(error)) from error
        # By updates, not by calls: a resumed run makes some again.
        self._run.define_metric("num_updates", hidden=True)
        self._run.define_metric("*", step_metric="num_updates")

    def add(self, scalars: dict[str, float], step: int) -> None:
        try:
            self._run.log({**scalars, "num_updates": step})
        except wandb.Error as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        self._run.finish()
