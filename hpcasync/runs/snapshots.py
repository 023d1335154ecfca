"""Finding the snapshots of a run directory: RUN_DIR/snapshots/NAME/{parameters.safetensors, state.json}."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcasync.errors import UserError, describe

CONFIG_FILE = "config.yaml"
PARAMETERS_FILE = "parameters.safetensors"
STATE_FILE = "state.json"
SNAPSHOTS_DIR = "snapshots"


@dataclass(frozen=True)
class Snapshot:
    """The parameters of one version, with what the run had done by then."""

    path: Path
    version: int
    num_updates: int
    target_tokens: int
    wall_seconds: float
    corpus_digest: str = ""  # of the corpus that it was trained on; empty: an older release did not tell

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.name

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Read a snapshot's state.

        Raises:
            UserError: state.json is missing, damaged or lacks a key.
        """
        state_path = path / STATE_FILE
        try:
            state: dict[str, Any] = json.loads(state_path.read_text())
            return cls(
                path=path,
                version=int(state["version"]),
                num_updates=int(state["num_updates"]),
                target_tokens=int(state["target_tokens"]),
                wall_seconds=float(state["wall_seconds"]),
                corpus_digest=str(state.get("layout", {}).get("corpus", "")),
            )
        except OSError as error:
            raise UserError(
                f"cannot read {state_path}: {describe(error, f'{path} is no complete snapshot')}"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{state_path} is damaged ({error!r}): remove {path} or restore it") from error


def find_run_dir(path: Path) -> Path:
    """The run directory that `path` is, or lies in.

    Raises:
        UserError: `path` does not exist, or no directory above it has a config.yaml.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run directory, a snapshot in it, or its {PARAMETERS_FILE}")
    absolute = path.absolute()
    for directory in (absolute, *absolute.parents):
        if (directory / CONFIG_FILE).is_file():
            return path if directory == absolute else directory
    raise UserError(f"no {CONFIG_FILE} in {path} or above it: give a run directory of `hpcasync train`, or part of one")


def list_snapshots(run_dir: Path) -> list[Snapshot]:
    """The complete snapshots of a run, by version. One that is being written has no state.json under its name yet."""
    directory = run_dir / SNAPSHOTS_DIR
    candidates = directory.iterdir() if directory.is_dir() else ()
    found = [
        Snapshot.read(path)
        for path in candidates
        if not path.name.endswith(".partial") and (path / STATE_FILE).is_file() and (path / PARAMETERS_FILE).is_file()
    ]
    return sorted(found, key=lambda snapshot: (snapshot.version, snapshot.name))


def chosen_directory(run_dir: Path) -> Path:
    """The directory that RUN_DIR/best names, or where there is none, RUN_DIR/last.

    Raises:
        UserError: neither is there, or the directory that is named is gone.
    """
    for name in ("best", "last"):
        pointer = run_dir / name
        if pointer.is_file():
            directory = run_dir / pointer.read_text().strip()
            if not (directory / PARAMETERS_FILE).is_file():
                raise UserError(
                    f"{pointer} names {directory}, but there is no {PARAMETERS_FILE}: give another snapshot"
                )
            return directory
    raise UserError(f"{run_dir} has no snapshot yet (neither `best` nor `last`): wait for the first one")
