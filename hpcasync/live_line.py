"""A line at the foot of a terminal that shows progress, and other lines above it."""

import shutil
import threading
from typing import BinaryIO

# Open MPI's mpirun hands on whole lines alone. So ranks mark those that show progress, and `hpcasync launch`, which is
# at the terminal, makes one live line of them.
PROGRESS_MARK = b"\x1e"

_ERASE = b"\r\x1b[2K"
_DEFAULT_SIZE = (80, 24)


class LiveLine:
    """The last line of a terminal; threads may share it."""

    def __init__(self, terminal: BinaryIO) -> None:
        self._terminal = terminal
        self._text = b""
        self._lock = threading.Lock()

    def show(self, text: bytes) -> None:
        """Show progress in the place of what was there."""
        with self._lock:
            self._text = text
            self._terminal.write(_ERASE + self._fitting())
            self._terminal.flush()

    def write(self, lines: bytes, stream: BinaryIO) -> None:
        """Write whole lines to a stream that may lead to the same terminal: above the live line."""
        with self._lock:
            if self._text:
                self._terminal.write(_ERASE)
                self._terminal.flush()
            stream.write(lines)
            stream.flush()
            if self._text:
                self._terminal.write(self._fitting())
                self._terminal.flush()

    def close(self) -> None:
        """Leave the line as it is, and the cursor below it."""
        with self._lock:
            if self._text:
                self._terminal.write(b"\n")
                self._terminal.flush()
            self._text = b""

    def _fitting(self) -> bytes:
        # A line that wraps could not be erased. The terminal may have changed its size.
        return self._text[: shutil.get_terminal_size(_DEFAULT_SIZE).columns - 1]
