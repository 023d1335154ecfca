"""Whether the data windows of a job are MPI's, or, within each host, memory that ranks map."""

from collections.abc import Sequence

from hpcasync.choices import WindowKind
from hpcasync.errors import UserError


def is_mapped(wanted: WindowKind, device_types: Sequence[str]) -> bool:
    """Whether windows are mapped: if that is wanted; with `auto` where all ranks are on GPUs.

    Args:
        device_types: where each rank computes, or holds its shard.
    """
    if wanted != "mapped":
        return wanted == "auto" and set(device_types) == {"cuda"}
    first = device_types[0]
    if other := next((rank for rank, kind in enumerate(device_types) if kind != first), None):
        raise UserError(
            f"exchange.window=mapped: rank 0 has its vectors on {first} and rank {other} on {device_types[other]}: set "
            "device and roles.server_device alike, or use exchange.window=mpi",
            everywhere=True,
        )
    return True
