"""`hpcasync doctor` as a whole, with its self-tests on two ranks."""

import json
import sys
from pathlib import Path

import pytest
from runners import CliRunner, MpiRunner

from hpcasync.doctor.mpi import check_rma
from hpcasync.launch.mpirun import Launcher


@pytest.fixture(scope="module")
def report(run_cli: CliRunner) -> dict[str, object]:
    result = run_cli("doctor", "--json")
    assert result.returncode == 0, result.stderr
    loaded: dict[str, object] = json.loads(result.stdout)
    return loaded


def test_the_main_job_can_run_here(report: dict[str, object]) -> None:
    assert report["schema"] == 1
    assert report["can_train"] is True
    checks = report["checks"]
    assert isinstance(checks, dict)
    assert {
        "mpi",
        "mpirun",
        "rma",
        "mpi_threads",
        "horovod",
        "torch",
        "cuda",
        "slurm",
        "mtdata",
        "cxx",
    } <= checks.keys()
    assert all(check["cure"] for check in checks.values() if check["status"] != "ok")


def test_the_self_test_moved_data_and_knows_the_thread_level(report: dict[str, object]) -> None:
    checks = report["checks"]
    assert isinstance(checks, dict)
    facts = checks["rma"]["facts"]
    assert facts["put_gigabytes_per_second"] > 0 and facts["fetch_and_op_microseconds"] > 0
    assert checks["mpi_threads"]["facts"]["thread_level"].startswith("MPI_THREAD_")
    assert checks["mpi_gpu_memory"]["facts"]["takes_gpu_memory"] in (True, False), "Open MPI and MPICH both say"


def test_a_launcher_that_starts_singletons_is_found_out(tmp_path: Path, mpirun: MpiRunner) -> None:
    # What an mpirun of another MPI does: every rank believes that it is alone.
    alone = tmp_path / "mpirun"
    alone.write_text(f"#!/bin/sh\nexec {sys.executable} -m mpi4py -m hpcasync.doctor.rma_probe\n")
    alone.chmod(0o755)
    (check,) = check_rma(Launcher(alone, mpirun.launcher.flavour))
    assert check.status == "broken"
    assert "2 ranks were started and mpi4py sees 1" in check.detail
