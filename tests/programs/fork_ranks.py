"""A process that has imported torch and forks for each rank: a second of CPU time less for each of them.

`fork_ranks.py SOCKET MODULES` serves copies of `forked_rank.py`, which mpirun starts, and ends with its standard input.
It has imported MODULES, too. What a rank imports of hpcasync, and MPI, it imports itself.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import selectors
import signal
import socket
import sys
from typing import Any

import click  # noqa: F401
import numpy
import psutil  # noqa: F401
import safetensors.numpy
import safetensors.torch  # noqa: F401
import sentencepiece  # noqa: F401
import torch.profiler
import torch.utils.data  # noqa: F401
import yaml  # noqa: F401
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator  # noqa: F401


class Ranks:
    """The forks, with a connection to the process that each stands for."""

    def __init__(self, address: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._woken, self._wake = socket.socketpair()
        for end in (self._woken, self._wake):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno())
        self._connections: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        for source in (sys.stdin, self._listener, self._woken):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> list[str] | None:
        """Fork for whoever asks, until standard input ends; in a fork: the arguments of the Python that it is."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    for pid in self._connections:
                        _kill(pid)
                    return None
                if key.fileobj is self._listener:
                    if (arguments := self._fork()) is not None:
                        return arguments
                elif key.fileobj is self._woken:
                    self._woken.recv(4096)
                    self._reap()
                else:  # killed, as mpirun does
                    self._selector.unregister(key.fileobj)
                    _kill(key.data)

    def _fork(self) -> list[str] | None:
        connection, _ = self._listener.accept()
        descriptors, line = list[int](), ""
        with contextlib.suppress(ConnectionResetError):
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
            line = connection.makefile().readline()
        if not line.endswith("\n"):  # who asks has been killed
            for descriptor in descriptors:
                os.close(descriptor)
            connection.close()
            return None
        request: dict[str, Any] = json.loads(line)
        if (pid := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for open_here in (*self._connections.values(), connection, self._listener, self._woken, self._wake):
                open_here.close()
            self._selector.close()
            _become(request, descriptors)
            return list(request["arguments"])
        for descriptor in descriptors:
            os.close(descriptor)
        self._connections[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ, pid)
        _tell(connection, pid)
        return None

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self._connections.pop(ended[0])
                with contextlib.suppress(KeyError):
                    self._selector.unregister(connection)
                _tell(connection, ended[1])
                connection.close()


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(f"{number}\n".encode())


def _kill(pid: int) -> None:
    for kill in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Be what mpirun has started: with its standard streams, environment, directory and cores."""
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # As python -u has them; what Python knows of the server's (can they be sought in?) is not true of these.
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)))
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(n, "w", closefd=False), write_through=True) for n in (1, 2))
    sys.executable = request["python"]
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.sched_setaffinity(0, request["cores"])
    os.environ.clear()
    os.environ.update(request["environment"])
    numpy.random.seed()  # torch's seed is the same in every process, and Python draws another in every fork


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    ranks = Ranks(sys.argv[1])
    print("ready", flush=True)
    gc.collect()
    gc.freeze()  # a fork that collects garbage would copy all that it looks at
    if (given := ranks.serve()) is not None:
        del ranks
        from hpcasync.launch.program import run_program

        run_program(given)
