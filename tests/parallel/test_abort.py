"""An error on a rank ends the whole job at once, with one message."""

import re
import socket
from pathlib import Path

import pytest
from runners import MpiRunner
from test_signals import write_config
from tiny_training import TinyCorpus

PROGRAM = Path(__file__).parent / "programs" / "failing_command.py"
FAILING_TRAINING = Path(__file__).parent / "programs" / "failing_training.py"


def run(mpirun: MpiRunner, num_ranks: int, how: str, failing: str, exit_code: int) -> str:
    # The program is its own `__main__`, as `python -m hpcasync` is; mpi4py's runner would abort for it.
    return mpirun.program(num_ranks, PROGRAM, how, failing, exit_code=exit_code).stderr


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_an_exception_on_one_rank_ends_the_job_with_one_traceback(mpirun: MpiRunner, num_ranks: int) -> None:
    stderr = run(mpirun, num_ranks, "exception", "1", exit_code=1)
    assert stderr.count("Traceback (most recent call last)") == 1
    assert stderr.count(f"uncaught exception on rank 1 of {num_ranks} on ") == 1
    assert "ZeroDivisionError: by rank 1" in stderr


@pytest.mark.parametrize(
    ("failing", "overrides"),
    [
        (3, ("roles.servers=2", "accumulate.global=2")),  # a worker
        (1, ("roles.servers=2", "accumulate.global=2")),  # a server that follows
        (1, ("mode=sync",)),
    ],
)
def test_an_exception_in_the_middle_of_training(
    mpirun: MpiRunner, tmp_path: Path, tiny_corpus: TinyCorpus, failing: int, overrides: tuple[str, ...]
) -> None:
    """Under plain mpirun: what a rank throws ends all, with one traceback that names the rank and its host."""
    config, endless = write_config(tmp_path, tiny_corpus), "stop={updates: 1000000}"
    job = mpirun.program(
        4, FAILING_TRAINING, str(failing), "train", config, *overrides, endless, timeout=240, exit_code=1
    )
    assert job.stderr.count("Traceback (most recent call last)") == 1, job.stderr
    assert job.stderr.count(f"uncaught exception on rank {failing} of 4 on {socket.gethostname()}; the job ends") == 1
    assert "ZeroDivisionError: in the middle of training" in job.stderr


def test_the_same_exception_on_all_ranks_is_shown_once(mpirun: MpiRunner) -> None:
    stderr = run(mpirun, 4, "exception", "all", exit_code=1)
    assert stderr.count("Traceback (most recent call last)") == 1


def test_an_exception_in_a_thread_ends_the_job(mpirun: MpiRunner) -> None:
    stderr = run(mpirun, 3, "thread", "2", exit_code=1)
    assert stderr.count("uncaught exception on rank 2 of 3 on ") == 1
    assert "ZeroDivisionError: by rank 2" in stderr


def test_a_user_error_of_all_ranks_is_shown_once_and_mpi_is_finalised(mpirun: MpiRunner) -> None:
    stderr = run(mpirun, 3, "user-error-everywhere", "all", exit_code=2)
    assert stderr.count("hpcasync: error: bad option") == 1
    assert "MPI_ABORT" not in stderr and "Traceback" not in stderr


def test_a_user_error_of_one_rank_names_it_and_ends_the_job(mpirun: MpiRunner) -> None:
    stderr = run(mpirun, 3, "user-error", "2", exit_code=2)
    assert stderr.count("bad option") == 1
    assert "hpcasync: error on rank 2 of 3 on " in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    # Rank 0 speaks for all, unless it is late by more than a second.
    ("failing", "message"),
    [("all", r"error( on rank \d of 3 on \S+)?: bad"), ("1", "error on rank 1 of 3 on ")],
)
def test_a_user_error_before_mpi_starts(mpirun: MpiRunner, failing: str, message: str) -> None:
    stderr = run(mpirun, 3, "user-error-before-mpi", failing, exit_code=2)
    assert stderr.count("bad option") == 1
    assert re.search(message, stderr)


def test_a_misspelt_command_is_reported_once(mpirun: MpiRunner) -> None:
    job = mpirun(3, ["train", "no-such-file.yaml"], exit_code=2)
    assert job.stderr.count("no-such-file.yaml") == 1
    assert mpirun(3, ["trian"], exit_code=2).stderr.count("trian") == 1
