"""What doctor says of what it finds."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from hpcasync.doctor.check import Check, can_run_main_job
from hpcasync.doctor.machine import (
    check_compiler,
    check_cores,
    check_futexes,
    check_kernel,
    check_shared_memory,
    check_slurm,
)
from hpcasync.doctor.mpi import check_horovod, check_library, check_rma, check_threads
from hpcasync.doctor.packages import check_cuda, check_package, check_torch
from hpcasync.doctor.report import as_json, print_table

GOOD = Check("mpi", "ok", "Open MPI 5", is_required=True, facts={"flavour": "openmpi"})
OPTIONAL_LACK = Check("slurm", "missing", "no sinfo", disables="sbatch scripts", cure="module load slurm")
REQUIRED_LACK = Check("rma", "broken", "no end after 60 s", True, "asynchronous modes", "another MPI")


def printed(checks: list[Check]) -> str:
    text = io.StringIO()
    print_table(checks, Console(file=text, width=100))
    return text.getvalue()


def test_only_what_is_required_decides() -> None:
    assert can_run_main_job([GOOD, OPTIONAL_LACK])
    assert not can_run_main_job([GOOD, REQUIRED_LACK])


def test_the_table_says_what_a_lack_disables_and_what_cures_it() -> None:
    text = printed([GOOD, OPTIONAL_LACK])
    assert "slurm disables: sbatch scripts\n  cure: module load slurm\n" in text
    assert "Asynchronous training on CPU can run." in text
    assert "Asynchronous training cannot run: rma." in printed([GOOD, OPTIONAL_LACK, REQUIRED_LACK])


def test_the_json_has_every_check_by_name() -> None:
    report = json.loads(as_json([GOOD, REQUIRED_LACK]))
    assert (report["schema"], report["can_train"]) == (1, False)
    assert report["checks"]["mpi"] == {
        "status": "ok", "present": True, "required": True, "detail": "Open MPI 5", "disables": "", "cure": "",
        "facts": {"flavour": "openmpi"},
    }  # fmt: skip
    assert report["checks"]["rma"]["present"] is False


@pytest.mark.parametrize(("free", "status"), [(64 << 20, "limited"), (8 << 30, "ok"), (None, "ok")])
def test_small_shared_memory_is_a_limit(free: int | None, status: str) -> None:
    check = check_shared_memory(free)
    assert check.status == status
    assert bool(check.cure) == (status == "limited")


@pytest.mark.parametrize("is_available", [False, True])
def test_ranks_that_have_to_poll_are_a_limit(is_available: bool) -> None:
    check = check_futexes(is_available=is_available)
    assert check.status == ("ok" if is_available else "limited")
    assert bool(check.cure) == bool(check.disables) == (not is_available)


def test_a_compiler_that_does_not_run_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    check = check_compiler()
    assert (check.status, check.detail) == ("missing", "/no/such/compiler does not run")
    assert "Horovod" in check.disables and "apt-get install g++" in check.cure


@pytest.mark.parametrize("reason", ["", "not compiled when hpcasync was installed"])
def test_updates_without_a_compiled_kernel_are_a_limit(reason: str) -> None:
    check = check_kernel(reason)
    assert check.status == ("limited" if reason else "ok")
    assert bool(check.cure) == bool(check.disables) == bool(reason)
    assert reason in check.detail


def test_without_slurm_its_scripts_are_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    check = check_slurm()
    assert check.status == "missing"
    assert "no sinfo and no sbatch" in check.detail


def test_the_machine_has_cores_and_memory() -> None:
    facts = check_cores().facts
    assert facts["cores"] >= 1 and facts["memory_bytes"] > facts["available_memory_bytes"] > 0


def test_packages() -> None:
    assert check_package("click", "click", True, "all").status == "ok"
    lack = check_package("no_such_package", "no-such-package", True, "all")
    assert (lack.status, lack.is_present, lack.disables) == ("missing", False, "all")
    assert lack.cure.endswith("-m pip install no-such-package")
    assert check_torch().is_present
    assert bool(check_cuda().disables) != check_cuda().is_present


def test_a_package_that_fails_to_import_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shattered.py").write_text("raise OSError('libsomething.so: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = check_package("shattered", "shattered", False, "little")
    assert check.status == "broken"
    assert check.detail == "OSError: libsomething.so: cannot open"
    assert "--force-reinstall" in check.cure


def test_mpi_is_there_and_a_low_thread_level_is_a_limit() -> None:
    check, library = check_library()
    assert check.is_present and library is not None
    assert check_threads("MPI_THREAD_MULTIPLE").status == "ok"
    assert check_threads("MPI_THREAD_SERIALIZED").status == "limited"


def test_without_mpirun_nothing_is_tested() -> None:
    assert [check.status for check in check_rma(None)] == ["missing"]
    assert not check_horovod(None).is_present


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build of torch")
def test_a_gpu_that_cannot_be_computed_on_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """This torch can compute on none, whatever it is made to say."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    properties = SimpleNamespace(name="NVIDIA V100", total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    check = check_cuda()
    assert check.status == "broken"
    assert check.detail.startswith("NVIDIA V100 (16 GiB); torch cannot compute there: Torch not compiled with CUDA")
