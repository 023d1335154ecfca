"""The library that fused_apply.c is compiled into when the package is installed (setup.py), where there is a compiler.

Once for all processors of a kind: the loader chooses what a node's can do.
"""

import ctypes
import functools
import hashlib
import importlib.util
from pathlib import Path

_SOURCE = Path(__file__).with_name("fused_apply.c")
_COMPILED = "hpcasync.ps.server._fused_apply"


@functools.cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    spec = importlib.util.find_spec(_COMPILED)
    if spec is None or spec.origin is None:
        return None, "not compiled when hpcasync was installed"
    try:
        library = ctypes.CDLL(spec.origin)
        digest = library.hpcasync_source_digest
    except (OSError, AttributeError) as error:
        return None, str(error)
    digest.restype = ctypes.c_char_p
    if digest().decode() != hashlib.sha256(_SOURCE.read_bytes()).hexdigest():
        return None, f"compiled from another {_SOURCE.name} than this one"
    library.hpcasync_sum.restype = ctypes.c_double
    library.hpcasync_step.restype = None
    return library, ""


def describe_updates() -> str:
    """How blocks are updated on CPU, for people."""
    library, reason = load()
    if library is not None:
        return "in one pass over memory, by a compiled kernel"
    return f"by torch, in a pass for each operation; no compiled kernel: {reason} (see `hpcasync doctor`)"
