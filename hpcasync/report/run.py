"""A run as its directory tells it."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from hpcasync.config.schema import parse_config
from hpcasync.errors import UserError, describe
from hpcasync.runs.records import METRICS_FILE, Record, evaluation_file, read_records


@dataclass(frozen=True)
class Run:
    """A run directory's records, also of a run that has not ended.

    Attributes:
        path: the run directory.
        config: the resolved configuration.
        updates: the `update` records by num_updates, without those that a resumption made anew.
        validations: scores of snapshots on the validation text by num_updates.
        tests: the same on the test text.
        summary: summary.json; None before the end.
        cluster: that the run was simulated on (its times are virtual); None of a real run.
        worker_counts: workers of each start, without repetitions.
    """

    path: Path
    config: Record
    updates: tuple[Record, ...]
    validations: tuple[Record, ...]
    tests: tuple[Record, ...]
    summary: Record | None
    cluster: Record | None
    worker_counts: tuple[int, ...] = ()

    @property
    def workers_text(self) -> str:
        """Workers, one number after the other where a resumption changed it; a dash where nothing tells."""
        counts = self.worker_counts or (() if self.num_workers is None else (self.num_workers,))
        return ", then ".join(map(str, counts)) or "\N{EN DASH}"

    @property
    def mode(self) -> str:
        return str(self.config["mode"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def tokens_per_second(self) -> float | None:
        """Target tokens applied per second of training, over the whole run so far."""
        if self.summary is not None:
            return float(self.summary["target_tokens_per_second"])
        if not self.updates or not self.updates[-1]["wall_seconds"]:
            return None
        return float(self.updates[-1]["target_tokens"] / self.updates[-1]["wall_seconds"])

    @property
    def staleness_histogram(self) -> dict[int, int]:
        """Gradients by staleness in updates; empty before the end of the run."""
        if self.summary is None:
            return {}
        return {int(staleness): number for staleness, number in self.summary["staleness"]["histogram"].items()}

    @property
    def staleness_mean(self) -> float | None:
        """Mean over all gradients; before the end of the run, over those of the last record."""
        if self.summary is not None:
            return float(self.summary["staleness"]["mean"])
        return float(self.updates[-1]["staleness_mean"]) if self.updates else None

    @property
    def num_workers(self) -> int | None:
        """Workers; None before the end of the run."""
        return None if self.summary is None else int(self.summary["roles"]["workers"])

    @property
    def num_servers(self) -> int:
        return 0 if self.mode == "sync" else int(self.config["roles"]["servers"])


def load_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is none, or a file of it is damaged.
    """
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"{path} is no run directory (it has no config.yaml): give directories that `hpcasync train` made"
        )
    records = read_records(path / METRICS_FILE)
    updates = [record for record in records if record.get("event") == "update"]
    validations = [record for record in records if record.get("event") == "validation"]
    cluster = path / "cluster.yaml"
    return Run(
        path,
        _read_config(path / "config.yaml"),
        _newest(updates),
        _newest(validations or read_records(path / evaluation_file("valid"))),
        _newest(read_records(path / evaluation_file("test"))),
        _read_summary(path / "summary.json"),
        _read_mapping(cluster) if cluster.is_file() else None,
        _worker_counts(record for record in records if record.get("event") == "start"),
    )


def _worker_counts(starts: Iterable[Record]) -> tuple[int, ...]:
    counts = (int(record["workers"]) for record in starts if "workers" in record)
    return tuple(count for count, _ in itertools.groupby(counts))


def _newest(records: Iterable[Record]) -> tuple[Record, ...]:
    """One record per number of updates, the last one: a resumed run makes some updates again."""
    newest = {record["num_updates"]: record for record in records}
    return tuple(newest[number] for number in sorted(newest))


def _read_config(path: Path) -> Record:
    config = _read_mapping(path)
    missing = [key for key in ("name", "mode", "seed", "roles") if key not in config]
    if missing:
        raise UserError(f"{path} is not the resolved configuration of a run: it lacks {', '.join(missing)}")
    try:
        # With the defaults of keys that have come since: the run had them in effect.
        return parse_config(config, str(path)).to_dict()
    except UserError:
        return config  # of a version that knew other keys


def _read_mapping(path: Path) -> Record:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {describe(error, 'restore it')}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not what a run writes: it holds no mapping of keys to values")
    return values


def _read_summary(path: Path) -> Record | None:
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(
            f"cannot read {path}: {describe(error, 'remove it to report on the run as unfinished')}"
        ) from error
    assert isinstance(summary, dict)
    return summary
