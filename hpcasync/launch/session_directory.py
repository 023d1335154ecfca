"""What a killed mpirun leaves behind: Open MPI's session directory, named by its process id.

When that number comes round again, the next mpirun finds the directory in its way, and ends at once: "The PMIx server's
listener thread failed to start", with exit code 213 (Open MPI 5.0.11).
"""

import shutil
import tempfile
from pathlib import Path


def session_directory(pid: int) -> Path:
    """Where an mpirun of this host and environment keeps its sockets."""
    return Path(tempfile.gettempdir()) / f"ompi.{pid}"


def remove_left_session(pid: int) -> None:
    """Remove the directory of an mpirun that has ended, if it is there still."""
    shutil.rmtree(session_directory(pid), ignore_errors=True)
