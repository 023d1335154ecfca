"""Checks of the machine itself: cores, memory, shared memory, futexes, compilers, CUDA, SLURM."""

import os
import platform
import shutil
import subprocess
import sys

import psutil

from hpcasync.comm import futex
from hpcasync.doctor.check import Check
from hpcasync.launch.mpirun import SMALL_SHARED_MEMORY_BYTES
from hpcasync.launch.shared_memory import free_shared_memory_bytes
from hpcasync.ps.server import kernel_library

_TIMEOUT_SECONDS = 10
_GIB = 1 << 30


def check_python() -> Check:
    """The interpreter and the system."""
    facts = {"python": platform.python_version(), "system": platform.platform(), "host": platform.node()}
    return Check("python", "ok", f"{facts['python']} on {facts['system']}", facts=facts)


def check_cores() -> Check:
    """Cores that this process may use, and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    detail = f"{cores} cores, {memory.total / _GIB:.1f} GiB of memory, {memory.available / _GIB:.1f} free"
    facts = {"cores": cores, "memory_bytes": memory.total, "available_memory_bytes": memory.available}
    return Check("cores", "ok", detail, facts=facts)


def check_shared_memory(free_bytes: int | None) -> Check:
    """Room for the windows of the ranks of one host.

    Args:
        free_bytes: free space of /dev/shm, None where there is none.
    """
    if free_bytes is None:
        return Check("shared_memory", "ok", "no /dev/shm: MPI keeps windows elsewhere", facts={"free_bytes": None})
    detail, facts = f"/dev/shm has {free_bytes / _GIB:.2f} GiB free", {"free_bytes": free_bytes}
    if free_bytes >= SMALL_SHARED_MEMORY_BYTES:
        return Check("shared_memory", "ok", detail, facts=facts)
    return Check(
        "shared_memory",
        "limited",
        detail,
        disables="models whose windows do not fit; `hpcasync launch` places Open MPI's in the temporary directory",
        cure="mount -o remount,size=50% /dev/shm (in a container: docker run --shm-size=8g)",
        facts=facts,
    )


def check_futexes(*, is_available: bool) -> Check:
    """Whether ranks of one host can wake each other (`comm.futex`)."""
    facts = {"available": is_available}
    if is_available:
        return Check("futexes", "ok", "ranks of one host wake each other", facts=facts)
    return Check(
        "futexes",
        "limited",
        f"not known for {platform.system()} on {platform.machine()}",
        disables="nothing; ranks of one host poll for each other, and small updates are half as frequent",
        cure="on Linux, add the number of this machine's system call futex to hpcasync/comm/futex.py",
        facts=facts,
    )


def check_compiler() -> Check:
    """A C++ compiler, which only building Horovod needs."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    version = _first_line([*compiler.split(), "--version"]) if compiler else None
    if version:
        return Check("cxx", "ok", version, facts={"version": version})
    return Check(
        "cxx",
        "missing",
        f"{compiler} does not run" if compiler else "no g++ or c++ on PATH",
        disables="building Horovod (mode sync)",
        cure="apt-get install g++ (or load your cluster's compiler module, or set CXX)",
    )


def check_kernel(reason: str) -> Check:
    """The compiled kernel of updates.

    Args:
        reason: why there is none; empty where there is one (`ps.server.kernel_library`).
    """
    if not reason:
        return Check("kernel", "ok", "updates are made in one pass over memory", facts={"compiled": True})
    return Check(
        "kernel",
        "limited",
        f"no compiled kernel: {reason}",
        disables="nothing; torch makes the updates, which takes a server two to seven times as long",
        cure=f"install a C compiler (apt-get install gcc), then: {sys.executable} setup.py build_ext --inplace in a "
        "checkout that hpcasync runs from, else install hpcasync again",
        facts={"compiled": False},
    )


def check_slurm() -> Check:
    """The commands of SLURM, and whether its controller answers."""
    missing = [command for command in ("sinfo", "sbatch") if not shutil.which(command)]
    disables = "sbatch scripts in slurm/; mpirun and `hpcasync launch` work without"
    if missing:
        return Check(
            "slurm",
            "missing",
            f"no {' and no '.join(missing)} on PATH",
            disables=disables,
            cure="run on a cluster's login node (module load slurm), or do without",
        )
    partitions = _first_line(["sinfo", "--noheader", "--format", "%P %D nodes %t"])
    if partitions is None:
        cure = "run `sinfo` for its message; on a machine of your own: systemctl start munge slurmctld slurmd"
        return Check("slurm", "broken", "sinfo gets no answer from a controller", disables=disables, cure=cure)
    version = _first_line(["sinfo", "--version"])
    return Check("slurm", "ok", f"{version}: {partitions}", facts={"version": version})


def machine_checks() -> list[Check]:
    """All checks of this module, but for CUDA."""
    return [
        check_python(),
        check_cores(),
        check_shared_memory(free_shared_memory_bytes()),
        check_futexes(is_available=futex.is_available()),
        check_compiler(),
        check_kernel(kernel_library.load()[1]),
        check_slurm(),
    ]


def _first_line(command: list[str]) -> str | None:
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = result.stdout.strip().splitlines()
    return lines[0] if result.returncode == 0 and lines else None
