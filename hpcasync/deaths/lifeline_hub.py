"""The lifelines of a job's ranks, at `hpcasync launch`: it learns at once that a rank has died, on whichever host.

MPI's launchers end a job when a rank is killed, mostly: not where MPI's fault tolerance is on, nor when a host is gone.
What they say of it differs, and is never what the rank was for. See `hpcasync.deaths.lifeline` for the ranks' end.
"""

import contextlib
import json
import resource
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from hpcasync.deaths.lifeline import Address, keep_alive

_LOOPBACK = "127.0.0.1"
# For the ranks to end themselves where mpirun has not done it.
_CLOSING_SECONDS = 3.0
# Open files beside the lines.
_OTHER_FILES = 100
_CHUNK_BYTES = 4096


@dataclass(frozen=True)
class Rank:
    """What is known of a rank at the other end of a line.

    Attributes:
        name: what it is to people; empty: not told yet.
        is_released: others look after it.
        saves_on_usr1: it saves and ends on that signal.
        exit_code: with which it is about to end; None: it has not said so.
        is_unreachable: its host does not answer any more.
    """

    rank: int = -1
    host: str = ""
    pid: int = 0
    name: str = ""
    is_released: bool = False
    saves_on_usr1: bool = False
    exit_code: int | None = None
    is_unreachable: bool = False

    @property
    def is_missed(self) -> bool:
        """Whether its end is a death: it was a rank of this job, and has said nothing of ending."""
        return self.rank >= 0 and self.exit_code is None and not self.is_released

    def __str__(self) -> str:
        where = f"rank {self.rank} on {self.host}"
        return f"{self.name} ({where}, process {self.pid})" if self.name else f"{where} (process {self.pid})"


@dataclass
class _Line:
    connection: socket.socket
    rank: Rank = field(default_factory=Rank)
    unread: bytes = b""


def describe_deaths(dead: Iterable[Rank]) -> str:
    """One line about ranks whose lines have been cut in the same moment; the first to die is among them."""
    ranks = sorted(dead, key=lambda rank: rank.rank)
    fate = "cannot be reached any more" if all(rank.is_unreachable for rank in ranks) else "has died"
    return f"{' or '.join(map(str, ranks))} {fate}, and the job cannot go on without it: it ends"


class Lifelines:
    """Where the ranks of one job take hold of their lines.

    Args:
        is_local: all ranks run on this host.

    Attributes:
        address: for the environment of the ranks, as `hpcasync.deaths.lifeline.VARIABLE`.
        missed: ranks that have ended, or been made to, without having said that they would.
        has_report: a rank has said that it ends with an error.
    """

    def __init__(self, num_ranks: int, *, is_local: bool) -> None:
        _allow_open_files(num_ranks)
        self._on_death: Callable[[list[Rank]], None] = lambda dead: None
        self._listener = socket.create_server((_LOOPBACK if is_local else "", 0), backlog=num_ranks)
        hosts = (_LOOPBACK,) if is_local else own_addresses()
        self.address = Address(secrets.token_hex(8), hosts, self._listener.getsockname()[1])
        self._waker, self._wake = socket.socketpair()
        self.missed: list[Rank] = []
        self.has_report = False
        self._lines: dict[socket.socket, _Line] = {}
        self._has_verdict = False
        self._selector = selectors.DefaultSelector()
        for sock in (self._listener, self._wake):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    @contextlib.contextmanager
    def watched(self, on_death: Callable[[list[Rank]], None]) -> Iterator[None]:
        """While the job runs: watch the ranks from a thread. After it, ranks that still run are made to end.

        Args:
            on_death: called once, in that thread, when ranks die without a word before any has reported an error: with
                those that were found dead first.
        """
        self._on_death = on_death
        thread = threading.Thread(target=self._run, name="lifelines", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._waker.close()
            thread.join()
            self._selector.close()
            self._listener.close()
            self._wake.close()

    def tell(self, name: str) -> None:
        """Tell all ranks the name of a signal, before another is sent in its place. For a handler of signals."""
        for connection in list(self._lines):
            with contextlib.suppress(OSError):
                connection.send(f"{name}\n".encode())

    @property
    def save_on_usr1(self) -> bool:
        """Whether all ranks that run have said that they save and end on USR1. For a handler of signals."""
        lines = list(self._lines.values())
        return bool(lines) and all(line.rank.saves_on_usr1 for line in lines)

    def _run(self) -> None:
        while self._wake not in (ready := self._wait(None)):
            self._attend(ready)
        # A death that mpirun was quicker to notice.
        self._attend(ready)
        self._has_verdict = True
        self._selector.unregister(self._wake)
        for line in self._lines.values():
            with contextlib.suppress(OSError):
                line.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _CLOSING_SECONDS
        while self._lines and (seconds := deadline - time.monotonic()) > 0:
            self._attend(self._wait(seconds))
        for line in self._lines.values():
            line.connection.close()
        self.missed += [line.rank for line in self._lines.values() if line.rank.is_missed]

    def _wait(self, seconds: float | None) -> list[Any]:
        return [key.fileobj for key, _ in self._selector.select(seconds)]

    def _attend(self, ready: list[Any]) -> None:
        """Take what has come; judge whether a rank has died."""
        if self._listener in ready:
            self._accept()
        dead = [rank for sock in ready if (rank := self._read(sock)) and rank.is_missed]
        self.missed += dead
        # Who reports an error does so before it ends the others: what is read with its report comes after it.
        if dead and not self._has_verdict and not self.has_report:
            self._has_verdict = True
            self._on_death(dead)

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                keep_alive(connection)
                self._lines[connection] = _Line(connection)
                self._selector.register(connection, selectors.EVENT_READ)
        except BlockingIOError:
            return
        except OSError as error:
            # Such as too many open files: it would come again at once.
            self._selector.unregister(self._listener)
            print(f"hpcasync: only {len(self._lines)} ranks are watched: {error}", file=sys.stderr, flush=True)

    def _read(self, sock: Any) -> Rank | None:
        """Take what a line brings; its rank if it has been cut."""
        line = self._lines.get(sock)
        if line is None:
            return None
        try:
            while chunk := line.connection.recv(_CHUNK_BYTES):
                self._take(line, chunk)
        except BlockingIOError:
            return None
        except OSError as error:
            line.rank = replace(line.rank, is_unreachable=not isinstance(error, ConnectionError))
        self._selector.unregister(sock)
        del self._lines[sock]
        sock.close()
        return line.rank

    def _take(self, line: _Line, chunk: bytes) -> None:
        *texts, line.unread = (line.unread + chunk).split(b"\n")
        for text in texts:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                message = json.loads(text)
                # A stranger has no rank, and is not listened to.
                if line.rank.rank >= 0 or message.pop("token", "") == self.address.token:
                    line.rank = replace(line.rank, **message)
            self.has_report = self.has_report or bool(line.rank.exit_code)


def _allow_open_files(number: int) -> None:
    """Raise this process's limit on open files, as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


def own_addresses() -> tuple[str, ...]:
    """IPv4 addresses at which other hosts may reach this one, the loopback address if there are none."""
    entries = (entry for interface in psutil.net_if_addrs().values() for entry in interface)
    addresses = [entry.address for entry in entries if entry.family == socket.AF_INET]
    return tuple(address for address in addresses if not address.startswith("127.")) or (_LOOPBACK,)
