"""The signature of a run: versions of everything that took part."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from hpcasync import __version__
from hpcasync.comm.mpi import library_name, thread_level


def collect_versions() -> dict[str, str | None]:
    """Versions by name; None for what is not there."""
    packages = ("torch", "horovod", "mpi4py", "sacrebleu", "sentencepiece", "numpy")
    return {
        "hpcasync": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "mpi": library_name(),
        "mpi_thread_level": thread_level(),
        **{name: _package(name) for name in packages},
    }


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _commit() -> str | None:
    """The commit of the source tree, where the package runs from one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
