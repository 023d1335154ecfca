"""The directory of a run: made new, or found again to go on from its newest checkpoint."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from hpcasync.complete_files import list_complete, partial_of, publish, sync_path, write_text_atomically
from hpcasync.config.schema import RunConfig
from hpcasync.errors import UserError, describe
from hpcasync.runs.files import read_state
from hpcasync.runs.records import METRICS_FILE, evaluation_file, read_validations
from hpcasync.runs.run_state import RunState
from hpcasync.runs.scores import BestScore
from hpcasync.sole_writer import LOCK_FILE, sole_writer


@contextmanager
def run_directory_locked(config: RunConfig, *, must_exist: bool) -> Iterator[None]:
    """Be the only one who writes the directory of a run: from before its newest checkpoint is looked for to the end.

    Raises:
        UserError: somebody else writes it, it cannot be written, or it holds no run and must.
    """
    run_dir = config.output_dir
    if must_exist:
        _check_holds_run(run_dir, "--resume")
    cure = "wait until that has ended, or end it, or set another name, seed or run_dir"
    with sole_writer(run_dir, cure, "set run_dir to where you may write"):
        yield


def create_run_directory(config: RunConfig, files: Iterable[Path], *, overwrite: bool) -> None:
    """Make the directory with the resolved configuration and copies of the files that the run is to keep."""
    run_dir = config.output_dir
    try:
        if (run_dir / "config.yaml").exists():
            if not overwrite:
                raise UserError(
                    f"{run_dir} holds a run already: go on with --resume, replace it with --overwrite, or set name, "
                    "seed or run_dir"
                )
            _remove_run(run_dir)
        elif any(path.name != LOCK_FILE for path in run_dir.iterdir()):
            raise UserError(f"{run_dir} is not empty and holds no run: choose another name or run_dir")
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "snapshots").mkdir()
        for path in files:
            shutil.copyfile(path, run_dir / path.name)
        config.save(run_dir / "config.yaml")
    except OSError as error:
        raise _cannot_write(run_dir, error) from error


def save_configuration(config: RunConfig) -> None:
    """Replace the resolved configuration of a run that goes on; metrics.jsonl keeps that of each start."""
    try:
        write_text_atomically(config.output_dir / "config.yaml", config.to_yaml())
    except OSError as error:
        raise _cannot_write(config.output_dir, error) from error


def find_checkpoint(run_dir: Path, option: str = "--resume") -> Path:
    """The newest complete checkpoint of a run.

    Args:
        option: that asked for it, for messages.
    """
    _check_holds_run(run_dir, option)
    complete = list_complete(run_dir / "checkpoints")
    if not complete:
        raise UserError(f"{option}: {run_dir}/checkpoints holds no complete checkpoint; start anew with --overwrite")
    return complete[-1]


def find_checkpoint_of(config: RunConfig, *, resume: bool, resume_from: Path | None) -> Path | None:
    """The checkpoint that a run goes on from: its own, or that of another run; None where it begins anew.

    Args:
        resume: to go on from its own, if there is one or there is no other to go on from.
    """
    own = config.output_dir
    if resume and (resume_from is None or list_complete(own / "checkpoints")):
        return find_checkpoint(own)
    if resume_from is None:
        return None
    if resume_from.resolve() == own.resolve():
        raise UserError(f"--resume-from: {resume_from} is this run's own directory; go on with --resume")
    return find_checkpoint(resume_from, "--resume-from")


def take_over(checkpoint: Path, run_dir: Path) -> None:
    """Copy a checkpoint of another run, and its records, scores and snapshots; that run stays as it is."""
    source = checkpoint.parent.parent
    try:
        for path in (source / METRICS_FILE, *source.glob(evaluation_file("*"))):
            if path.is_file():
                shutil.copyfile(path, run_dir / path.name)
        for path in list_complete(source / "snapshots"):
            if not path.is_symlink():
                _copy_complete(path, run_dir / "snapshots")
        _copy_complete(checkpoint, run_dir / "checkpoints")  # last: with it there is something to go on from
    except OSError as error:
        raise UserError(
            f"--resume-from: cannot copy {error.filename or source} to {run_dir}: "
            + describe(error, "start again with --overwrite then")
        ) from error


def _check_holds_run(run_dir: Path, option: str) -> None:
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{option}: {run_dir} holds no run; leave {option} out to start it")


def _remove_run(run_dir: Path) -> None:
    """Remove all but the lock, its mark last: what is left after a crash can be overwritten, too."""
    mark = run_dir / "config.yaml"
    for path in run_dir.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path != mark and path.name != LOCK_FILE:
            path.unlink()
    mark.unlink()


def _cannot_write(run_dir: Path, error: OSError) -> UserError:
    return UserError(f"cannot write the run directory {run_dir}: {describe(error, 'set another run_dir')}")


def _copy_complete(directory: Path, parent: Path) -> None:
    copy = parent / directory.name
    shutil.copytree(directory, partial_of(copy), copy_function=shutil.copyfile)  # with permissions of new files
    for path in partial_of(copy).iterdir():
        sync_path(path)  # before it gets its name
    publish(copy)


def optimizer_of_run(run_dir: Path) -> str:
    """optimizer.name of a run that may have been begun by an earlier version, whose default was adam."""
    path = run_dir / "config.yaml"
    try:
        return str(yaml.safe_load(path.read_text())["optimizer"].get("name", "adam"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {describe(error, 'restore it')}") from error


def read_run_state(checkpoint: Path, layout: dict[str, str], metric: str) -> tuple[RunState, int]:
    """Where the run stands and the number of shard files of its checkpoint.

    Raises:
        UserError: the checkpoint belongs to another model or corpus, or is damaged.
    """
    state = read_state(checkpoint)
    try:
        for what in {**state["layout"], **layout}:
            value, now = state["layout"].get(what, "none"), layout.get(what, "none")
            if now != value:
                raise UserError(
                    f"{checkpoint} was written with another {what} ({value}, now {now}): "
                    "resume with the configuration it was started with"
                )
        best = BestScore.of_records(
            read_validations(checkpoint.parent.parent), metric, state["counters"]["num_updates"]
        )
        return RunState.from_dict(state, best), int(state["num_shards"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{checkpoint}/state.json lacks what is needed to resume ({error!r}); remove {checkpoint}"
        ) from error
