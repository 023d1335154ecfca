"""The command line of `hpcasync launch`."""

import os
import stat
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner as ClickRunner

from hpcasync.cli.launch import launch, split_arguments
from hpcasync.errors import UserError
from hpcasync.launch import locate, shared_memory
from hpcasync.launch.locate import Library, find_launcher
from hpcasync.launch.shared_memory import remove_left_segments


@pytest.mark.parametrize(
    ("given", "own", "options", "command"),
    [
        ("-n 3 -- train x", "-n 3", "", "train x"),
        ("-np 3 --host a,b -- train x", "-np 3", "--host a,b", "train x"),
        ("-genv A b -n 3 --dry-run -- train -n 9 -- y", "-n 3 --dry-run", "-genv A b", "train -n 9 -- y"),
        ("--ranks=4 --mca osc rdma", "--ranks=4", "--mca osc rdma", ""),
        ("-n", "-n", "", ""),
        ("-n5 -x A -- train", "-n5", "-x A", "train"),
    ],
)
def test_arguments_are_told_apart(given: str, own: str, options: str, command: str) -> None:
    assert split_arguments(given.split()) == (own.split(), options.split(), command.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "2"], "needs `--` and a command"),
        (["-n", "2", "--", "trian"], "did you mean train?"),
        (["-n", "2", "--", "hpcasync", "ls"], "'ls' after `--` is no command of hpcasync"),
        (["-n", "2", "--", __file__], f"for Python: python {__file__}"),
        (["-n", "2", "--max-restarts", "1", "--", "ls"], "--max-restarts is for `train`"),
        (["-n", "2", "--survive-workers", "--", "doctor"], "--survive-workers is for `train`"),
    ],
)
def test_a_command_is_required(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        launch.main(arguments, standalone_mode=False)


def test_tasks_of_srun_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match=r"srun has started 4 tasks.*SLURM_STEP_NUM_TASKS=4.*unset SLURM_PROCID"):
        launch.main(["-n", "2", "--", "train", "x.yaml"], standalone_mode=False)


@pytest.mark.parametrize("arguments", [["--", "train"], ["-n", "0", "--", "train"], ["-n", "two", "--", "train"]])
def test_the_number_of_ranks_is_required(arguments: list[str]) -> None:
    result = ClickRunner().invoke(launch, arguments)
    assert result.exit_code == 2
    assert "-n" in result.output


def test_dry_run_prints_the_line_only() -> None:
    result = ClickRunner().invoke(launch, ["-n", "7", "--dry-run", "--", "train", "x.yaml"])
    assert result.exit_code == 0
    assert " -n 7 " in result.output and result.output.endswith("-m hpcasync train x.yaml\n")


@pytest.mark.parametrize(
    ("command", "started"),
    [
        ("hpcasync train x.yaml", "{python} -m hpcasync train x.yaml"),
        ("{python} my.py a", "{python} -m hpcasync.launch.program my.py a"),
        ("{python} -u -W ignore -m my -c", "{python} -u -W ignore -m hpcasync.launch.program -m my -c"),
        ("ls -l", "{python} -m hpcasync.launch.program --execute ls -l"),
        ("{python} -i", "{python} -m hpcasync.launch.program --execute {python} -i"),
    ],
)
def test_any_program_is_started(command: str, started: str) -> None:
    words = command.format(python=sys.executable).split()
    result = ClickRunner().invoke(launch, ["-n", "2", "--dry-run", "--", *words])
    assert result.exit_code == 0, result.output
    assert result.output.rstrip("\n").endswith(f" {started.format(python=sys.executable)}")


def fake_mpirun(directory: Path, answer: str) -> Path:
    path = directory / "mpirun"
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("answer", ["mpirun (Open MPI) 4.1.4", "HYDRA build details: Version: 4.2", "something else"])
def test_an_mpirun_of_another_mpi_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    other = fake_mpirun(tmp_path, answer)
    monkeypatch.setattr(locate, "find_library", lambda: Library("openmpi", 5, "Open MPI v5.0.11"))
    monkeypatch.setattr(locate, "_candidates", lambda flavour: iter([other]))
    with pytest.raises(
        UserError, match=f"no mpirun for the MPI library of mpi4py, Open MPI v5.0.11; {other} is another"
    ):
        find_launcher()


def test_the_first_mpirun_of_the_right_mpi_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wrong = fake_mpirun(tmp_path / "a", "mpirun (Open MPI) 4.1.4")
    right = fake_mpirun(tmp_path / "b", "mpirun (Open MPI) 5.0.1")
    monkeypatch.setattr(locate, "find_library", lambda: Library("openmpi", 5, "Open MPI v5.0.11"))
    monkeypatch.setattr(locate, "_candidates", lambda flavour: iter([wrong, right]))
    assert find_launcher().path == right


def test_segments_in_use_are_kept_and_the_others_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "_DIRECTORY", tmp_path)
    started_at = psutil.Process().create_time()
    left, used, foreign, old = (
        tmp_path / name for name in ("sm_segment.h.0.1.0", "sm_segment.h.0.1.1", "x", "osc_old")
    )
    for path in (left, used, foreign, old):
        path.write_text("memory")
    os.utime(old, (started_at - 1000, started_at - 1000))
    with used.open():
        assert remove_left_segments(started_at) == [left]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["osc_old", "sm_segment.h.0.1.1", "x"]
