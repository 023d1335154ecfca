"""Runs that differ in nothing but their seed belong together; what tells groups apart gives them their names."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from hpcasync.config.schema import Mode
from hpcasync.config.strict import flatten
from hpcasync.report.run import Run
from hpcasync.report.wording import setting_words

# Where a run was put and how it was watched is no part of what it was.
_NOT_COMPARED = ("name", "run_dir", "seed", "logging", "checkpoint", "roles.server_threads", "roles.worker_threads")
_WORKERS = "workers"
_ABSENT = "\N{EN DASH}"
_MODES = get_args(Mode)


@dataclass(frozen=True)
class Group:
    """Runs of one configuration with different seeds.

    Attributes:
        label: mode, and the settings in which it differs from the others.
        mode: of all its runs.
        runs: by seed.
    """

    label: str
    mode: str
    runs: tuple[Run, ...]


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group runs, in the order of modes and then of the first of each group, and label the groups."""
    by_settings: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        settings = compared_settings(run)
        by_settings.setdefault(tuple((key, str(value)) for key, value in settings.items()), []).append(run)
    members = [sorted(group, key=lambda run: run.seed) for group in by_settings.values()]
    members.sort(key=lambda group: _MODES.index(group[0].mode) if group[0].mode in _MODES else len(_MODES))
    keys = [key for key in differing_keys([group[0] for group in members]) if key != "mode"]
    labels = [_label(group[0], keys) for group in members]
    counts = Counter(labels)
    return [
        Group(label if counts[label] == 1 else f"{label} ({group[0].path.name})", group[0].mode, tuple(group))
        for label, group in zip(labels, members, strict=True)
    ]


def compared_settings(run: Run) -> dict[str, Any]:
    """The dotted keys that say what a run was, and its number of workers where it is known."""
    settings = {
        key: value
        for key, value in flatten(run.config).items()
        if not any(key == other or key.startswith(f"{other}.") for other in _NOT_COMPARED)
    }
    if run.mode == "sync":
        settings = {key: value for key, value in settings.items() if not _is_ignored_by_sync(key)}
    settings[_WORKERS] = run.workers_text if len(run.worker_counts) > 1 else run.num_workers
    if run.cluster is not None:
        settings.update({f"cluster.{key}": value for key, value in flatten(run.cluster).items() if key != _WORKERS})
    settings["time"] = "real" if run.cluster is None else "simulated"
    return settings


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Keys in which runs differ, in the order of the schema. One that a mode ignores differs only among the others."""
    settings = [compared_settings(run) for run in runs]
    keys = dict.fromkeys(key for values in settings for key in values)
    return [key for key in keys if len({str(values[key]) for values in settings if key in values}) > 1]


def setting(run: Run, key: str) -> str:
    """A setting as text; a dash where the run's mode ignores it."""
    value = compared_settings(run).get(key)
    return _ABSENT if value is None else str(value)


def _is_ignored_by_sync(key: str) -> bool:
    return key in ("roles.servers", "accumulate.global") or key.startswith(("exchange.", "staleness."))


def _label(run: Run, keys: Sequence[str]) -> str:
    settings = compared_settings(run)
    return ", ".join([run.mode, *(setting_words(key, settings[key]) for key in keys if key in settings)])
