"""Memory that a process may still take: of its host, and of the control groups that a scheduler or container sets."""

from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")
# Files of versions 2 and 1: the limit, what is used, and the statistics' name of file pages that can be given back.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_memory() -> int:
    """Bytes: the least of what the host has and what the control groups of this process leave."""
    membership = Path("/proc/self/cgroup")
    groups = group_directories(membership.read_text(), _GROUPS) if membership.exists() else []
    return min([psutil.virtual_memory().available, *(left for group in groups if (left := left_in(group)) is not None)])


def group_directories(membership: str, root: Path) -> list[Path]:
    """The directories of a process's memory groups, with those above them, whose limits hold too.

    Args:
        membership: of /proc/PID/cgroup: lines of number:controllers:path.
        root: where control groups are mounted.
    """
    directories = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        top = root if not controllers else root / "memory"
        if controllers and "memory" not in controllers.split(","):
            continue
        own = top / path.lstrip("/")
        directories += [own, *(above for above in own.parents if above == top or top in above.parents)]
    return directories


def left_in(group: Path) -> int | None:
    """Bytes below a group's limit; None: it has none, or is not visible here, as in a container."""
    for limit_file, usage_file, inactive in (_V2, _V1):
        try:
            limit, usage = (group / limit_file).read_text().strip(), int((group / usage_file).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        return None if limit == "max" else max(0, int(limit) - usage + int(statistics.get(inactive, 0)))
    return None
