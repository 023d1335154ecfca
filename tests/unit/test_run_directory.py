"""Which checkpoint a run goes on from, and what it takes along from another run."""

from pathlib import Path

import pytest

from hpcasync.complete_files import list_complete
from hpcasync.config.schema import Config
from hpcasync.errors import UserError
from hpcasync.runs.directory import find_checkpoint_of, take_over
from hpcasync.runs.files import write_state


def make_run(run_dir: Path, *updates: int) -> Path:
    """A run with checkpoints and snapshots that hold nothing but their state."""
    run_dir.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "evaluation-valid.jsonl", "timeline-0000.jsonl"):
        (run_dir / name).write_text(name)
    for kind in ("checkpoints", "snapshots"):
        for number in updates:
            directory = run_dir / kind / f"u{number:08d}"
            directory.mkdir(parents=True)
            write_state(directory, {"num_updates": number})
    (run_dir / "checkpoints" / "u99999999.partial").mkdir(parents=True)
    (run_dir / "snapshots").mkdir(exist_ok=True)
    return run_dir


def config_of(tmp_path: Path, mode: str) -> Config:
    values = {"name": "x", "mode": mode, "run_dir": tmp_path, "data": {"path": "data"}, "stop": {"updates": 1}}
    return Config.model_validate(values)


def test_a_run_begins_anew_or_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sync")
    assert find_checkpoint_of(config, resume=False, resume_from=None) is None
    run_dir = make_run(tmp_path / "x-sync-seed1", 4, 8)
    assert find_checkpoint_of(config, resume=False, resume_from=None) is None
    assert find_checkpoint_of(config, resume=True, resume_from=None) == run_dir / "checkpoints" / "u00000008"


def test_another_run_is_gone_on_from_unless_this_one_has_got_further(tmp_path: Path) -> None:
    config, other = config_of(tmp_path, "async"), make_run(tmp_path / "x-sync-seed1", 4)
    theirs = other / "checkpoints" / "u00000004"
    for resume in (False, True):
        assert find_checkpoint_of(config, resume=resume, resume_from=other) == theirs
    own = make_run(tmp_path / "x-async-seed1", 6)
    assert find_checkpoint_of(config, resume=True, resume_from=other) == own / "checkpoints" / "u00000006"
    assert find_checkpoint_of(config, resume=False, resume_from=other) == theirs, "a new beginning, from the other"


def test_what_there_is_not_is_named(tmp_path: Path) -> None:
    config, own = config_of(tmp_path, "async"), make_run(tmp_path / "x-async-seed1")
    with pytest.raises(UserError, match=r"--resume-from: .*none holds no run"):
        find_checkpoint_of(config, resume=True, resume_from=tmp_path / "none")
    with pytest.raises(UserError, match=r"--resume: .*holds no complete checkpoint"):
        find_checkpoint_of(config, resume=True, resume_from=None)
    with pytest.raises(UserError, match="is this run's own directory; go on with --resume"):
        find_checkpoint_of(config, resume=False, resume_from=tmp_path / "." / own.name)


def test_records_snapshots_and_the_checkpoint_are_copied(tmp_path: Path) -> None:
    other, own = make_run(tmp_path / "other", 4, 8), make_run(tmp_path / "own")
    take_over(other / "checkpoints" / "u00000008", own)
    assert [path.name for path in list_complete(own / "snapshots")] == ["u00000004", "u00000008"]
    assert [path.name for path in list_complete(own / "checkpoints")] == ["u00000008"]
    assert (own / "metrics.jsonl").read_text() == "metrics.jsonl"
    assert len(list_complete(other / "checkpoints")) == 2


def test_a_copy_that_fails_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    other, own = make_run(tmp_path / "other", 4), make_run(tmp_path / "own")
    (own / "snapshots").rmdir()
    (own / "snapshots").write_text("in the way")
    with pytest.raises(UserError, match=r"--resume-from: cannot copy .* start again with --overwrite then"):
        take_over(other / "checkpoints" / "u00000004", own)
    assert list_complete(own / "checkpoints") == []
