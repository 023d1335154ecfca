"""The file that describes an experiment."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from hpcasync.config.section import Section
from hpcasync.config.strict import UserPath, read_values, validate

Settings = dict[str, Any]
# A list of values for the axis's dotted key; or named bundles of settings.
Axis = list[Any] | dict[str, Settings]


class SlurmSection(Section):
    """How runs are submitted; `slurm/site.sh` has what belongs to the site."""

    nodes: int = Field(1, ge=1, description="nodes of each run")
    options: list[str] = Field([], description="further options of sbatch")


class Experiment(Section):
    """An experiment file. Keys of `set`, `axes`, `include` and `exclude` are dotted keys of the configuration, or
    `workers`, or names of axes; for simulated runs also dotted keys of the cluster after `cluster.`.
    """

    name: str = Field(min_length=1, pattern=r"^[\w.+-]+$", description="of the directory of its runs")
    base: UserPath = Field(description="training configuration, relative to this file")
    run: Literal["real", "simulated"] = Field("real", description="simulated: with `hpcasync simulate`")
    workers: int = Field(ge=1, description="workers of a run, servers not counted")
    cluster: UserPath | None = Field(None, description="simulated runs: cluster description, relative to this file")
    set: Settings = Field({}, description="settings of all runs")
    axes: dict[str, Axis] = Field({}, description="each run has one value of each axis")
    include: list[Settings] = Field([], description="further runs; lists are taken apart")
    exclude: list[Settings] = Field([], description="combinations of axes to leave out")
    thresholds: list[float] = Field([], description="BLEU scores to tell times for")
    evaluate: Literal["none", "valid", "test"] = Field(
        "none",
        description="text on which the best snapshot of each run is scored when it has ended; where the run does not "
        "score its snapshots, all of them are scored on the validation text before",
    )
    slurm: SlurmSection = SlurmSection()

    @model_validator(mode="after")
    def _check_axes(self) -> "Experiment":
        for name, axis in self.axes.items():
            if not axis:
                raise ValueError(f"axis {name} has no values")
        for excluded in self.exclude:
            unknown = [name for name in excluded if name not in self.axes]
            if unknown or not excluded:
                raise ValueError(f"exclude names axes, {', '.join(self.axes) or 'of which there are none'}: {excluded}")
        if self.cluster is not None and self.run == "real":
            raise ValueError("cluster is for run: simulated")
        return self


def load_experiment(path: Path) -> Experiment:
    """Read an experiment file; its paths become relative to the working directory.

    Raises:
        UserError: the file is missing or no YAML mapping, a key is unknown, or a value does not fit.
    """
    experiment = validate(Experiment, read_values(path, Experiment), str(path))
    updates: dict[str, Any] = {"base": _beside(path, experiment.base)}
    if experiment.cluster is not None:
        updates["cluster"] = _beside(path, experiment.cluster)
    return experiment.model_copy(update=updates)


def _beside(file: Path, other: Path) -> Path:
    return Path(os.path.normpath(file.parent / other))
