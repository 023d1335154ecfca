"""A rank's end of its lifeline: a TCP connection to `hpcasync launch`, which the kernel cuts when the process dies.

So `launch` learns of a death on any host at once, whatever MPI does about it, and the ranks learn of the death of
`launch` (`hpcasync.deaths.lifeline_hub` is its end). Without `launch` nothing here does anything.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from hpcasync.errors import UserError
from hpcasync.exit_codes import RANK_LOST

# In the environment of the ranks, from `address_text`.
VARIABLE = "HPCASYNC_LIFELINE"
# For the ranks of `hpcasync launch --survive-workers` (`deaths.policy`): asked for, not only possible.
SURVIVE_VARIABLE = "HPCASYNC_SURVIVE_WORKERS"

# For each address of the host of `launch`; those that cannot be reached mostly say so at once.
_CONNECT_SECONDS = 3.0
# Between the end of `launch` and that of a rank which mpirun has not ended.
_GRACE_SECONDS = 1.0
# For `launch` to end the job where one rank's error may come of another's death.
_VERDICT_SECONDS = 5.0
# Signals and lines come by different ways.
_TELLING_SECONDS = 0.5
# A host that has lost its power says nothing: its silence is noticed after 10 + 3 · 5 seconds.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))

# What `launch` says before it hands on a signal, maybe USR1 in the place of another: that one's name.
_told_signal = ""
_has_been_told = threading.Event()
_held: socket.socket | None = None
_is_released = False
_sending = threading.Lock()


@dataclass(frozen=True)
class Address:
    """Where `launch` listens: a word that both sides know, addresses of its host, a port."""

    token: str
    hosts: tuple[str, ...]
    port: int

    def __str__(self) -> str:
        return ":".join([self.token, str(self.port), *self.hosts])

    @classmethod
    def parse(cls, text: str) -> "Address":
        try:
            token, port, *hosts = text.split(":")
            return cls(token, tuple(hosts), int(port))
        except ValueError as error:
            raise UserError(f"{VARIABLE}={text!r} is not what `hpcasync launch` sets: unset it") from error


def hold(rank: int) -> None:
    """Take hold of the lifeline that the environment names, if it names one; processes that this one starts do not."""
    global _held
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return
    address = Address.parse(text)
    _held = _connect(address)
    if _held is None:
        where = f"{', '.join(address.hosts)} port {address.port}"
        print(
            f"hpcasync: rank {rank} on {socket.gethostname()} cannot reach `hpcasync launch` at {where}: only MPI "
            "will notice if it dies",
            file=sys.stderr,
            flush=True,
        )
        return
    _say(token=address.token, rank=rank, host=socket.gethostname(), pid=os.getpid())
    os.register_at_fork(after_in_child=_let_go)
    threading.Thread(target=_wait_for_hangup, args=(_held,), name="lifeline", daemon=True).start()


def is_held() -> bool:
    """Whether `launch` ends the job when this process dies."""
    return _held is not None and not _is_released


def told_signal() -> str:
    """Name of the signal that `launch` was sent, which may have sent USR1 in its place; empty: none."""
    if is_held():
        _has_been_told.wait(_TELLING_SECONDS)
    return _told_signal


def introduce(name: str) -> None:
    """Tell `launch` what this rank is to people, for example "server 0"."""
    _say(name=name)


def save_on_usr1() -> None:
    """From now on USR1 makes this rank's job save and end: `launch` sends it in place of the first INT or TERM."""
    _say(saves_on_usr1=True)


def release() -> None:
    """From now on the ranks look after each other: `launch` does nothing when this one dies."""
    global _is_released
    _is_released = True
    _say(is_released=True)


def leave(exit_code: int) -> None:
    """This process is about to end, and has said why if it is not in good order."""
    _say(exit_code=exit_code)


def wait_for_verdict() -> None:
    """After an MPI call has failed: give `launch` the time to end the job, if that came of a death."""
    if is_held():
        time.sleep(_VERDICT_SECONDS)


def keep_alive(connection: socket.socket) -> None:
    """Make the kernel notice when the other side's host is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _connect(address: Address) -> socket.socket | None:
    for host in address.hosts:
        with contextlib.suppress(OSError):
            connection = socket.create_connection((host, address.port), timeout=_CONNECT_SECONDS)
            connection.settimeout(None)
            keep_alive(connection)
            return connection
    return None


def _say(**message: Any) -> None:
    if _held is not None:
        with _sending, contextlib.suppress(OSError):
            _held.sendall(json.dumps(message).encode() + b"\n")


def _wait_for_hangup(connection: socket.socket) -> None:
    """Hear which signals `launch` was sent, until it is gone."""
    global _told_signal
    with contextlib.suppress(OSError):
        while said := connection.recv(64):
            _told_signal = said.decode().split()[-1]
            _has_been_told.set()
    time.sleep(_GRACE_SECONDS)
    os._exit(RANK_LOST)


def _let_go() -> None:
    """In a child: the line is its parent's."""
    global _held
    if _held is not None:
        _held.close()
        _held = None
