"""Whether the MPI library takes addresses of GPU memory: asked, for builds differ."""

import ctypes
import re
from pathlib import Path

_LIBRARY = re.compile(r"\S*/libmpi[^/\s]*\.so\S*")
# Of Open MPI and MPICH alike: 1 if the library was built with CUDA and can use it here. mpi4py has no binding.
_QUERY = "MPIX_Query_cuda_support"


def takes_gpu_memory(mappings: str | None = None) -> bool | None:
    """What the MPI library of this process, which must be started, says; None: it says nothing.

    Args:
        mappings: of this process, as the kernel lists them.
    """
    try:
        text = Path("/proc/self/maps").read_text() if mappings is None else mappings
    except OSError:
        return None
    for path in sorted(set(_LIBRARY.findall(text))):
        query = getattr(ctypes.CDLL(path), _QUERY, None)
        if query is not None:
            return bool(query())
    return None


def describe_gpu_memory(takes: bool | None) -> str:
    """For people."""
    said = {True: "takes GPU memory", False: "takes no GPU memory", None: "does not say whether it takes GPU memory"}
    return f"MPI {said[takes]}"
