"""A command on a pseudo-terminal of its own, as a person has it: what it shows, and keys that are pressed."""

import os
import pty
import select
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import pytest


class Terminal:
    """A context manager; inside it the command runs.

    Args:
        command: program and arguments.
        environment: of the command.
        directory: where it starts.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], directory: Path) -> None:
        self.shown = b""
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            os.chdir(directory)
            os.execvpe(command[0], list(command), {**environment, "TERM": "xterm"})

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)  # hangs up
        if psutil.pid_exists(self._pid):
            os.waitpid(self._pid, 0)

    def press(self, key: bytes) -> None:
        """Press a key, such as b"\\x03" for Ctrl-C."""
        os.write(self._descriptor, key)

    def wait_until(self, condition: Callable[[bytes], bool], what: str, seconds: float = 240) -> None:
        """Read until what has been shown fulfils a condition."""
        deadline = time.monotonic() + seconds
        while not condition(self.shown):
            if not self._read(deadline):
                pytest.fail(f"no {what} was shown:\n{self.shown.decode(errors='replace')}")

    def wait(self, seconds: float = 240) -> int:
        """Read until the end; returns the exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _read(self, deadline: float) -> bool:
        if not select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            chunk = os.read(self._descriptor, 4096)
        except OSError:  # Linux, when nobody has the terminal open any more
            return False
        self.shown += chunk
        return bool(chunk)
