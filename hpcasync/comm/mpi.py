"""Starting MPI and agreeing on errors: what every rank does before roles differ."""

from collections.abc import Callable
from typing import TypeVar

from mpi4py import MPI

from hpcasync.errors import UserError

Result = TypeVar("Result")

_THREAD_LEVELS = {
    MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
    MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
    MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
    MPI.THREAD_MULTIPLE: "MPI_THREAD_MULTIPLE",
}


def library_name() -> str:
    """The MPI library in use, for example "Open MPI 5.0.11"."""
    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def thread_level() -> str:
    """The thread support that MPI provides, by its standard name."""
    if not MPI.Is_initialized():
        return "not started"
    return _THREAD_LEVELS[MPI.Query_thread()]


def require_threads(what: str, instead: str = "set it to none") -> None:
    """Fail unless several threads of a rank may call MPI at once.

    Raises:
        UserError: naming `what` needs it, and what to do `instead`; the same on every rank of a library.
    """
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UserError(
            f"{what} needs MPI_THREAD_MULTIPLE, and this MPI library provides {thread_level()}: {instead}, or use "
            "a library built with thread support",
            everywhere=True,
        )


def gather_hosts(comm: MPI.Intracomm) -> list[str]:
    """Host name of every rank of `comm`, on every rank."""
    return comm.allgather(MPI.Get_processor_name())


def ranks_of_node(comm: MPI.Intracomm, node_comm: MPI.Intracomm) -> dict[int, int]:
    """The rank in `node_comm` of each rank of `comm` that is in it."""
    there = comm.group.Translate_ranks(None, node_comm.group)
    return {rank: node for rank, node in enumerate(there) if node != MPI.UNDEFINED}


def collectively(comm: MPI.Comm, action: Callable[[], Result]) -> Result:
    """Run `action` on every rank and fail on all of them if it failed with a UserError on any.

    Ranks read files, so one of them alone can meet a mistake; the others would wait for it in the next collective.

    Raises:
        UserError: on every rank, with the message of the lowest rank that failed.
    """
    result: Result | None = None
    message: str | None = None
    try:
        result = action()
    except UserError as error:
        message = str(error)
    messages = comm.allgather(message)
    failed = [rank for rank, text in enumerate(messages) if text is not None]
    if failed:
        where = "" if len(failed) == comm.size else f" (on rank {failed[0]} of {comm.size})"
        raise UserError(f"{messages[failed[0]]}{where}", everywhere=True)
    return result  # type: ignore[return-value]


def require_same(comm: MPI.Intracomm, value: str, what: str) -> None:
    """Fail on every rank unless all ranks hold the same `value`.

    Raises:
        UserError: naming the first rank that differs from rank 0.
    """
    values = comm.allgather(value)
    different = [rank for rank, other in enumerate(values) if other != values[0]]
    if different:
        raise UserError(
            f"{what} differs between ranks: rank 0 has {values[0]}, rank {different[0]} has {values[different[0]]}; "
            "start every rank with the same files and arguments",
            everywhere=True,
        )
