"""The records of a run: files of JSON lines in its directory, which a crash may leave with half a line at their end."""

import json
from pathlib import Path
from typing import Any

from hpcasync.errors import UserError, describe

METRICS_FILE = "metrics.jsonl"
Record = dict[str, Any]


def evaluation_file(split: str) -> str:
    """The name of the file that holds the scores of a run's snapshots on a text."""
    return f"evaluation-{split}.jsonl"


def read_records(path: Path) -> list[Record]:
    """The records of a file, oldest first; none if it does not exist.

    A last line without its end is what a crash left, and is no record.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {describe(error, 'restore it, or remove it')}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"cannot read {path}: line {number} is no JSON: remove the line") from error
        if not isinstance(record, dict):
            raise UserError(f"cannot read {path}: line {number} is no JSON object: remove the line")
        records.append(record)
    return records


def read_validations(run_dir: Path) -> list[dict[str, Any]]:
    """The validation records of a run, oldest first."""
    return [record for record in read_records(run_dir / METRICS_FILE) if record["event"] == "validation"]


def read_end(run_dir: Path, num_updates: int) -> str:
    """Why a run ended after this number of updates; empty if it did not."""
    ends = [record for record in read_records(run_dir / METRICS_FILE) if record["event"] == "end"]
    return ends[-1]["stop_reason"] if ends and ends[-1]["num_updates"] == num_updates else ""
