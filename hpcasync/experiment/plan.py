"""The runs of an experiment: axes multiplied out, each one a valid configuration with a name of its own."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcasync.config.schema import Config, load_config
from hpcasync.errors import UserError
from hpcasync.experiment.schema import Experiment, Settings
from hpcasync.simulate.cluster import ClusterConfig, load_cluster

SEED, MODE, WORKERS = "seed", "mode", "workers"
# Begins keys of the cluster that a run is simulated on.
CLUSTER = "cluster."


@dataclass(frozen=True)
class PlannedRun:
    """One run of an experiment.

    Attributes:
        config: resolved and valid.
        overrides: what makes it of the base configuration, `key=value`.
        num_workers: workers.
        coordinates: axis -> value or name of a bundle, as text; of an included run its settings.
        cluster: that a run is simulated on; None of a real run.
        cluster_overrides: what makes it of the cluster file, `key=value`.
    """

    config: Config
    overrides: tuple[str, ...]
    num_workers: int
    coordinates: dict[str, str]
    cluster: ClusterConfig | None
    cluster_overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run directory's name."""
        return self.config.output_dir.name

    @property
    def num_ranks(self) -> int:
        """Workers and servers."""
        return self.num_workers + self.config.num_servers


def plan_runs(experiment: Experiment) -> list[PlannedRun]:
    """All runs, in the order of the axes, included ones last."""
    runs = [_plan(experiment, coordinates, settings) for coordinates, settings in _combinations(experiment)]
    if not runs:
        raise UserError(f"experiment {experiment.name} has no runs: exclude leaves none of the axes' combinations")
    by_directory: dict[Path, PlannedRun] = {}
    for run in runs:
        other = by_directory.setdefault(run.config.output_dir, run)
        if other is not run:
            raise UserError(
                f"experiment {experiment.name}: two runs would write {run.config.output_dir}: "
                f"{_show(other.coordinates)} and {_show(run.coordinates)}; give the bundles of an axis, or the runs "
                "of include, settings that differ, or set name"
            )
    return runs


def experiment_directory(experiment: Experiment) -> Path:
    """Where the runs, their logs and the report are.

    Raises:
        UserError: the base configuration is not valid.
    """
    base = load_config(experiment.base, _as_overrides(_of_configuration(experiment.set)))
    return base.run_dir / experiment.name


def _combinations(experiment: Experiment) -> Iterator[tuple[dict[str, str], Settings]]:
    """Coordinates and settings of each run."""
    points = [[(name, *point) for point in _points(name, axis)] for name, axis in experiment.axes.items()]
    if points or not experiment.include:
        for combination in itertools.product(*points):
            coordinates = {name: label for name, label, _ in combination}
            if any(_matches(coordinates, excluded) for excluded in experiment.exclude):
                continue
            yield coordinates, {key: value for *_, settings in combination for key, value in settings.items()}
    for included in experiment.include:
        values = [value if isinstance(value, list) else [value] for value in included.values()]
        for chosen in itertools.product(*values):
            coordinates, settings = {}, {}
            for key, value in zip(included, chosen, strict=True):
                label, own = _point(experiment, key, value)
                coordinates[key] = label
                settings.update(own)
            yield coordinates, settings


def _points(name: str, axis: Any) -> Iterator[tuple[str, Settings]]:
    if isinstance(axis, dict):
        yield from axis.items()
    else:
        for value in axis:
            yield _text(value), {name: value}


def _point(experiment: Experiment, key: str, value: Any) -> tuple[str, Settings]:
    axis = experiment.axes.get(key)
    if isinstance(axis, dict):
        if value not in axis:
            raise UserError(f"include: axis {key} has no {value!r}, but {', '.join(axis)}")
        return value, axis[value]
    return _text(value), {key: value}


def _matches(coordinates: dict[str, str], excluded: Settings) -> bool:
    return all(
        coordinates[name] in [_text(value) for value in (values if isinstance(values, list) else [values])]
        for name, values in excluded.items()
    )


def _plan(experiment: Experiment, coordinates: dict[str, str], settings: Settings) -> PlannedRun:
    given = {**experiment.set, **settings}
    merged = _of_configuration(given)
    where = f"experiment {experiment.name}, run {_show(coordinates)}"
    num_workers = given.get(WORKERS, experiment.workers)
    if not isinstance(num_workers, int) or num_workers < 1:
        raise UserError(f"{where}: workers must be a whole number from 1, not {num_workers!r}")
    of_cluster = {key.removeprefix(CLUSTER): value for key, value in given.items() if key.startswith(CLUSTER)}
    if of_cluster and experiment.run == "real":
        raise UserError(f"{where}: {CLUSTER}{next(iter(of_cluster))} is for run: simulated")
    cluster_overrides = _as_overrides({**of_cluster, WORKERS: num_workers}) if experiment.run == "simulated" else ()
    merged.setdefault("name", _run_name(experiment.name, coordinates, str(merged.get(MODE, ""))))
    merged["run_dir"] = str(experiment_directory(experiment))
    overrides = _as_overrides(merged)
    try:
        config = load_config(experiment.base, overrides)
        if config.num_servers and "roles.servers" not in merged:
            # Said aloud, so that a batch job does not choose another number.
            overrides = (*overrides, f"roles.servers={config.roles.servers}")
            config = load_config(experiment.base, overrides)
        cluster = load_cluster(experiment.cluster, cluster_overrides) if experiment.run == "simulated" else None
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return PlannedRun(config, overrides, num_workers, coordinates, cluster, cluster_overrides)


def _of_configuration(settings: Settings) -> Settings:
    """Those of the settings that are keys of the training configuration."""
    return {key: value for key, value in settings.items() if key != WORKERS and not key.startswith(CLUSTER)}


def _as_overrides(settings: Settings) -> tuple[str, ...]:
    """`key=value` without blanks, in YAML that is JSON."""
    return tuple(f"{key}={_text(value)}" for key, value in settings.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _run_name(experiment: str, coordinates: dict[str, str], mode: str) -> str:
    """What tells the run from others beside mode and seed, which the run directory's name has anyway."""
    parts = [experiment]
    for axis, label in coordinates.items():
        if axis in (SEED, MODE) or label == mode:
            continue
        # A bundle's name speaks for itself, a bare value does not.
        key = axis.rpartition(".")[2] if re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?|true|false|null", label) else ""
        parts.append(re.sub(r"[^\w.+-]+", "_", key + label))
    return "-".join(parts)


def _show(coordinates: dict[str, str]) -> str:
    return "(" + ", ".join(f"{axis} {label}" for axis, label in coordinates.items()) + ")"
