"""Finding the snapshots of a run directory: RUN_DIR/snapshots/NAME/{parameters.safetensors, state.json}."""

from dataclasses import dataclass
from pathlib import Path

from hpcasync.complete_files import STATE_FILE, list_complete
from hpcasync.errors import UserError
from hpcasync.runs.files import PARAMETERS_FILE, read_state

CONFIG_FILE = "config.yaml"


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
        return self.path.name

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Read a snapshot's state.

        Raises:
            UserError: state.json is missing, damaged or lacks a key.
        """
        state = read_state(path)
        try:
            return cls(
                path=path,
                version=int(state["version"]),
                num_updates=int(state["num_updates"]),
                target_tokens=int(state["target_tokens"]),
                wall_seconds=float(state["wall_seconds"]),
                corpus_digest=str(state.get("layout", {}).get("corpus", "")),
            )
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path / STATE_FILE} is damaged ({error!r}): remove {path} or restore it") from error


def find_run_dir(path: Path) -> Path:
    """The run directory that `path` is, or lies in."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run directory, a snapshot in it, or its {PARAMETERS_FILE}")
    absolute = path.absolute()
    for directory in (absolute, *absolute.parents):
        if (directory / CONFIG_FILE).is_file():
            return path if directory == absolute else directory
    raise UserError(f"no {CONFIG_FILE} in {path} or above it: give a run directory of `hpcasync train`, or part of one")


def list_snapshots(run_dir: Path) -> list[Snapshot]:
    """The complete snapshots of a run, by version. One that is being written has no state.json under its name yet."""
    complete = list_complete(run_dir / "snapshots")
    return [Snapshot.read(path) for path in complete if (path / PARAMETERS_FILE).is_file()]


def chosen_directory(run_dir: Path) -> Path:
    """The directory that RUN_DIR/best names, or where there is none, RUN_DIR/last."""
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
