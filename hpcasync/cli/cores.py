"""How many cores a command may compute on, and how its threads wait for each other."""

import math
import os
from pathlib import Path

# Read by OpenMP when torch is loaded. A thread that spins takes the core that another one needs.
WAIT_PASSIVELY = {"OMP_WAIT_POLICY": "passive"}

_CGROUP = Path("/sys/fs/cgroup")
_SAMPLE_SECONDS = 0.2


def wait_passively() -> None:
    """From now on, and in child processes, unless the environment says otherwise; before torch is imported."""
    for name, value in WAIT_PASSIVELY.items():
        os.environ.setdefault(name, value)


def settle_threads(given: int | None) -> None:
    """Let torch compute with as many threads as were asked for, else as cores are free; OMP_NUM_THREADS stands."""
    import torch

    if given is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(given or free_cores())


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, as far as its cgroup has time for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota())))


def free_cores() -> int:
    """Those of them on which nothing computes at the moment, one at least."""
    import psutil  # here: every command reads this file

    idle = psutil.cpu_times_percent(_SAMPLE_SECONDS, percpu=True)
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(len(idle)))
    free = sum(times.idle + getattr(times, "iowait", 0.0) for core, times in enumerate(idle) if core in mine) / 100
    return max(1, min(usable_cores(), round(free)))


def _quota() -> float:
    """Cores' worth of time that the cgroup of a container gives; infinite where it sets no limit."""
    try:
        limit, period = (_CGROUP / "cpu.max").read_text().split()
        return math.inf if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return math.inf
