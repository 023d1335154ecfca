"""All files of a run have the permissions that the umask asks for; and what may not be read is not called damaged."""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from runners import CliRunner
from tiny_run import NAMES, TinyRun

from hpcasync.errors import describe

_DROP_FROM_BOUNDING_SET = 24  # PR_CAPBSET_DROP, see prctl(2)


@pytest.fixture
def group_umask() -> Iterator[None]:
    before = os.umask(0o007)
    yield
    os.umask(before)


def test_files_of_a_run_follow_the_umask(
    group_umask: None, run_cli: CliRunner, tiny_run: TinyRun, tmp_path: Path
) -> None:
    values = yaml.safe_load((tiny_run.run_dir / "config.yaml").read_text())
    values |= {"run_dir": str(tmp_path / "runs"), "name": "shared", "mode": "async", "stop": {"updates": 4}}
    values |= {"validation": {"every": 2}, "logging": {"every": 1, "tensorboard": False}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    run_dir = tmp_path / "runs" / "shared-async-seed1"
    trained = run_cli("simulate", tmp_path / "run.yaml", "--workers", "2", timeout=240)
    assert trained.returncode == 0, trained.stderr
    found = {str(path.relative_to(run_dir)): path for path in run_dir.rglob("*")}
    assert {"snapshots/u00000004/parameters.safetensors", "checkpoints/u00000004/state.json", "best"} <= found.keys()
    for name, path in found.items():
        assert oct(path.stat().st_mode & 0o777) == ("0o770" if path.is_dir() else "0o660"), name


def without_privileges() -> None:
    """Root, too, is held to permissions then: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH do not pass the next exec."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(_DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)


def test_what_may_not_be_read_is_not_called_damaged(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.run_dir, run)

    def refused(*words: str | Path) -> str:
        command = [sys.executable, "-m", "hpcasync", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=without_privileges, timeout=240)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        return done.stderr

    path = run / "snapshots" / NAMES[-1] / "parameters.safetensors"
    path.chmod(0)
    said = refused("translate", run, "-i", os.devnull)
    assert f"cannot read {path}: Permission denied; its permissions forbid that: ask its owner" in said
    assert "damaged" not in said
    (run / "snapshots").chmod(0)
    try:
        for words in (("translate", run, "-i", os.devnull), ("evaluate", run)):
            said = refused(*words)
            assert "Permission denied" in said and str(run / "snapshots") in said, said
    finally:
        (run / "snapshots").chmod(0o755)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError(2, "No such file or directory"), "No such file or directory; give another"),
        (PermissionError(13, "Permission denied"), "Permission denied; its permissions forbid that: ask its owner"),
        (OSError(28, "No space left on device"), "No space left on device; make room"),
        (OSError(30, "Read-only file system"), "Read-only file system; name a place that may be written"),
        (OSError(116, "Stale file handle"), "Stale file handle; the file server has lost it: try again"),
        (OSError("a library's own"), "a library's own; give another"),
        (ValueError("no number"), "no number; give another"),
    ],
)
def test_the_cure_does_not_contradict_the_error_number(error: Exception, expected: str) -> None:
    assert describe(error, "give another").startswith(expected)
