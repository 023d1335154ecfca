"""Asynchronous training over MPI one-sided communication. Importing this starts no MPI, Horovod or CUDA, and no torch.

    job = hpcasync.join(model, optimizer, scheduler=scheduler, mode="async-global", run="runs/x")
    for batch in job.share(loader, epochs=10):
        ...

docs/program.md has whole programs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcasync.program.job import Job
    from hpcasync.program.join import join
    from hpcasync.program.snapshot import load_snapshot

__version__ = "0.1.0"
__all__ = ["Job", "join", "load_snapshot"]

_HOMES = {"Job": "job", "join": "join", "load_snapshot": "snapshot"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hpcasync.program.{_HOMES[name]}"), name)
