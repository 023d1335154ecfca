"""Shared-memory files that killed ranks leave behind: 16 MiB a rank with Open MPI, and /dev/shm may be small."""

import contextlib
import os
import shutil
from pathlib import Path

_DIRECTORY = Path("/dev/shm")
_PATTERNS = ("sm_segment.*", "osc_*", "mpich_shm_*", "hpcasync-window-*")


def free_shared_memory_bytes() -> int | None:
    """Free space for the windows of ranks on one host; None where the system has no such directory."""
    return shutil.disk_usage(_DIRECTORY).free if _DIRECTORY.is_dir() else None


def remove_left_segments(created_after: float) -> list[Path]:
    """Remove this user's MPI segments that no process uses any more.

    Args:
        created_after: only files modified after this, in seconds since 1970.

    Returns:
        the files removed.
    """
    if not _DIRECTORY.is_dir():
        return []
    segments = [path for pattern in _PATTERNS for path in _DIRECTORY.glob(pattern) if _is_own(path, created_after)]
    if not segments:
        return []
    used = _files_in_use()
    left = [path for path in segments if str(path) not in used]
    for path in left:
        with contextlib.suppress(OSError):
            path.unlink()
    return left


def _is_own(path: Path, created_after: float) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and status.st_mtime >= created_after


def _files_in_use() -> set[str]:
    """Files of /dev/shm that a process of this user has open or mapped.

    Open descriptors are read before mappings: a segment just made is open first and mapped before it is closed.
    """
    used: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    used.add(str(descriptor.readlink()))
        with contextlib.suppress(OSError):
            lines = (process / "maps").read_text(errors="replace").splitlines()
            used.update(line.split(maxsplit=5)[5] for line in lines if str(_DIRECTORY) in line)
    return used
