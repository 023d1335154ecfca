"""What the MPI library says of GPU memory: asked through its C interface, which only some libraries have."""

import shutil
import subprocess
from pathlib import Path

import pytest

from hpcasync.comm.gpu_memory import describe_gpu_memory, takes_gpu_memory

MAPPING = "7f00-7f01 r-xp 00000000 08:01 42    {path}\n"


def library(path: Path, source: str) -> str:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler here")
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=source, text=True, check=True)
    return MAPPING.format(path=path)


@pytest.mark.parametrize("answer", [0, 1])
def test_the_library_is_asked(tmp_path: Path, answer: int) -> None:
    """A library of C++ bindings beside it does not know."""
    bindings = library(tmp_path / "libmpi_cxx.so.40", "int other(void) { return 1; }")
    mpi = library(tmp_path / "libmpi.so.40", f"int MPIX_Query_cuda_support(void) {{ return {answer}; }}")
    assert takes_gpu_memory(MAPPING.format(path="[heap]") + bindings + mpi) is bool(answer)


def test_a_library_that_cannot_be_asked_says_nothing(tmp_path: Path) -> None:
    assert takes_gpu_memory(library(tmp_path / "libmpi.so.12", "int other(void) { return 1; }")) is None
    assert takes_gpu_memory("7f00-7f01 rw-p 00000000 00:00 0 \n") is None
    assert describe_gpu_memory(None) == "MPI does not say whether it takes GPU memory"
