"""MPICH beside the MPI library of this environment, for tests that run on both; `make setup` puts it there."""

import os
import sys
from pathlib import Path

import mpi4py
import pytest

from hpcasync.launch.mpirun import Launcher

PREFIX = Path(sys.prefix) / "mpich"
_LIBRARY = PREFIX / "lib" / "libmpi.so.12"
# Wheels of mpi4py hold one module for each library's binary interface, and take the one that fits what they load.
ENVIRONMENT = {"MPI4PY_LIBMPI": str(_LIBRARY)}
LAUNCHER = Launcher(PREFIX / "bin" / "mpiexec.hydra", "mpich")


def require() -> None:
    """Skip the test where MPICH cannot be used, or fail it where HPCASYNC_REQUIRE_MPICH=1."""
    if reason := reason_to_skip():
        if os.environ.get("HPCASYNC_REQUIRE_MPICH") == "1":
            pytest.fail(f"HPCASYNC_REQUIRE_MPICH=1, but {reason}")
        pytest.skip(reason)


def reason_to_skip() -> str | None:
    """Why MPICH cannot be used here, or None."""
    if not _LIBRARY.is_file():
        return f"no MPICH in {PREFIX}: pip install --no-deps --ignore-installed --prefix {PREFIX} mpich"
    if not any(Path(mpi4py.__path__[0]).glob("MPI.mpich.*")):
        return "this mpi4py was built for one MPI library"
    return None
