"""Files in the memory that ranks of a host share."""

import os
import tempfile
from pathlib import Path

# Open MPI and MPICH keep the windows of a host here, too.
SHARED_MEMORY = Path("/dev/shm")


def make_shared_file(prefix: str) -> tuple[int, str]:
    """Descriptor and path of a new one; of a temporary file, which others may not see, without such memory."""
    directory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    return tempfile.mkstemp(prefix=prefix, dir=directory)
