"""Whether every rank comes to the loop, and what becomes of a rank that ends its program before it, or in it."""

import atexit
import weakref
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from mpi4py import MPI

from hpcasync.comm.roles import Roles
from hpcasync.errors import UserError
from hpcasync.launch.failure import before_exit, end_process


class Attendance:
    """What a rank has promised by joining (built collectively).

    A program that ends before the loop on all ranks just ends; on some of them it ends the job, which would wait for
    them. One that ends in the loop (`sys.exit`) has left it, as with a break.
    """

    def __init__(self, comm: MPI.Intracomm, roles: Roles) -> None:
        self._comm = comm.Dup()
        self._roles = roles
        self._has_come = False
        self._stream: weakref.ref[Generator[Any, None, None]] | None = None
        atexit.register(self._leave)
        before_exit(self._leave_loop)

    def begins(self, stream: Generator[Any, None, None]) -> None:
        """The program has this loop's batches."""
        self._stream = weakref.ref(stream)

    def come(self) -> None:
        """The loop begins on this rank (collective, with those that have ended their program).

        Raises:
            UserError: there are such ranks.
        """
        self._has_come = True
        self._meet()

    def end(self) -> None:
        """The loop is over: the program may end."""
        atexit.unregister(self._leave)

    def _leave(self) -> None:
        """The program ends on this rank, while MPI still runs."""
        if MPI.Is_finalized():
            return
        if not self._has_come:
            try:
                self._meet()
            except UserError as error:
                end_process(error)
        else:
            self._leave_loop()

    def _leave_loop(self) -> None:
        """As with a break: also where the program, which is over, holds its batches still."""
        if self._has_come and self._stream is not None and (stream := self._stream()) is not None:
            with suppress(SystemExit):  # the program's own exit code stands
                stream.close()

    def _meet(self) -> None:
        have_come = self._comm.allgather(self._has_come)
        self._comm.Free()
        gone = [rank for rank, has_come in enumerate(have_come) if not has_come]
        if gone and any(have_come):
            what = "server" if self._roles.is_server(gone[0]) else "worker"
            raise UserError(
                f"rank {gone[0]}, a {what}, has ended its program before the job's loop, and the others wait "
                "for it there: all ranks go through the loop, servers too, which have no batches in it"
            )
