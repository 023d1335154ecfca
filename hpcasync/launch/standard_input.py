"""Standard input of a job: rank 0 reads it itself, if it reads at all.

mpirun would take all of it, and the loop that `launch` stands in (`while read line; do hpcasync launch …`) would find
nothing more.
"""

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Mapping, MutableMapping

from hpcasync.launch.ranks import rank_from_environment

_VARIABLE = "HPCASYNC_STANDARD_INPUT"
_DESCRIPTOR = 0


def offered_input() -> Mapping[str, str]:
    """What tells rank 0 where this process's standard input is: a pipe or a file, on a host with /proc."""
    try:
        kind = os.fstat(_DESCRIPTOR).st_mode
        offset = os.lseek(_DESCRIPTOR, 0, os.SEEK_CUR) if stat.S_ISREG(kind) else 0
    except OSError:
        return {}
    if not (sys.platform.startswith("linux") and (stat.S_ISREG(kind) or stat.S_ISFIFO(kind))):
        return {}
    return {_VARIABLE: f"{socket.gethostname()} {os.getpid()} {offset}"}


def take_input(environment: MutableMapping[str, str] = os.environ) -> None:
    """In a rank: take what was offered, if this is rank 0 on the host of `launch`. The others have nothing to read."""
    words = environment.pop(_VARIABLE, "").split()
    rank = rank_from_environment(environment)
    if len(words) != 3 or words[0] != socket.gethostname() or (rank is not None and rank.world_rank != 0):
        return
    _, pid, offset = words
    with contextlib.suppress(OSError):
        descriptor = os.open(f"/proc/{pid}/fd/{_DESCRIPTOR}", os.O_RDONLY)
        if int(offset):
            os.lseek(descriptor, int(offset), os.SEEK_SET)
        os.dup2(descriptor, _DESCRIPTOR)
        os.close(descriptor)
