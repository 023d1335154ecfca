"""What a job prints, on its way to the terminal: one live line of progress, and nothing about an end that is explained.

mpirun frames a notice about every job that ends with another code than 0. Where a rank has said already why it ends,
that is noise in the place where people look for the reason.
"""

import re
import sys
import threading
from typing import IO, BinaryIO

from hpcasync.live_line import PROGRESS_MARK, LiveLine

_FRAME = re.compile(rb"-{60,}\s*")
_NOTICE = re.compile(
    rb"exited with non-zero status|MPI_ABORT was invoked|\bcalling\s+\"abort\"|srun returned non-zero exit status"
)
_LACKS_SLOTS = b"not enough slots available in the system"
# MPICH's, without a frame.
_ABORT_LINE = re.compile(rb"Abort\(-?\d+\) on node \d+ .*application called MPI_Abort")
# Those of mpirun are shorter; somebody else's frame is not held back for long.
_MOST_LINES = 25
_CHUNK_BYTES = 1 << 16
_CLOSING_SECONDS = 2.0


class NoticeFilter:
    """Takes out of a stream mpirun's notices that a job has failed.

    Attributes:
        notices: what was taken out.
        lacks_slots: Open MPI's mpirun has started nothing, since it was given fewer slots than ranks.
    """

    def __init__(self) -> None:
        self.notices = b""
        self.lacks_slots = False
        self._held: list[bytes] = []

    def take(self, line: bytes) -> bytes:
        """What is to be written when a line has come."""
        self.lacks_slots = self.lacks_slots or _LACKS_SLOTS in line
        if self._held:
            self._held.append(line)
            if _FRAME.fullmatch(line):
                return self._judge()
            return self.flush() if len(self._held) > _MOST_LINES else b""
        if _FRAME.fullmatch(line):
            self._held.append(line)
            return b""
        if _ABORT_LINE.match(line):
            self.notices += line
            return b""
        return line

    def flush(self) -> bytes:
        """What has been held back and is no whole notice."""
        text, self._held = b"".join(self._held), []
        return text

    def _judge(self) -> bytes:
        text = self.flush()
        if not _NOTICE.search(text):
            return text
        self.notices += text
        return b""


class Relay:
    """Hands on what a job prints; errors always, standard output where there is a live line to show.

    Args:
        has_live_line: standard output is a terminal, and the ranks mark progress for it.
    """

    def __init__(self, *, has_live_line: bool) -> None:
        self._live = LiveLine(sys.stdout.buffer) if has_live_line else None
        self._filter = NoticeFilter()
        self._threads: list[threading.Thread] = []

    def begin(self, stdout: IO[bytes] | None, stderr: IO[bytes] | None) -> None:
        """Read the job's streams; None: it writes to this process's own."""
        for source, target in ((stdout, sys.stdout), (stderr, sys.stderr)):
            if source is not None:
                thread = threading.Thread(target=self._hand_on, args=(source, target.buffer), daemon=True)
                thread.start()
                self._threads.append(thread)

    def say(self, text: str) -> None:
        """Print a line of `launch` itself among the errors."""
        self._write(f"hpcasync: {text}\n".encode(errors="replace"), sys.stderr.buffer)

    @property
    def lacks_slots(self) -> bool:
        """Whether mpirun has started nothing, for it was given fewer slots than ranks."""
        return self._filter.lacks_slots

    def end(self, *, is_explained: bool) -> None:
        """The job has ended: write what is left, and mpirun's notice unless the reason has been said."""
        for thread in self._threads:
            thread.join(_CLOSING_SECONDS)
        if self._live is not None:
            self._live.close()
        if not is_explained:
            self._write(self._filter.notices, sys.stderr.buffer)
        if self.lacks_slots:
            self.say(
                "mpirun has fewer slots than ranks: start fewer (-n), give hosts more (--host NAME:SLOTS), ask the "
                "batch system for more tasks (--ntasks-per-node), or add --oversubscribe to let ranks share cores"
            )

    def _hand_on(self, source: IO[bytes], target: BinaryIO) -> None:
        is_error = target is sys.stderr.buffer
        unfinished = b""
        while chunk := source.read1(_CHUNK_BYTES):  # type: ignore[attr-defined]
            *lines, unfinished = (unfinished + chunk).split(b"\n")
            for line in lines:
                self._take(line + b"\n", target, is_error=is_error)
            # A question, or a bar of progress: not to be kept waiting for its end, unless that could be a frame.
            if is_error and self._live is None and unfinished.strip() and not unfinished.startswith(b"-"):
                self._write(unfinished, target)
                unfinished = b""
        rest = self._filter.take(unfinished) + self._filter.flush() if is_error else unfinished
        if rest.strip():  # a blank follows mpirun's last notice
            self._write(rest, target)

    def _take(self, line: bytes, target: BinaryIO, *, is_error: bool) -> None:
        if is_error:
            self._write(self._filter.take(line), target)
        elif self._live is not None and line.startswith(PROGRESS_MARK):
            progress = line[len(PROGRESS_MARK) :].strip()
            self._live.show(progress) if progress else self._live.close()
        else:
            self._write(line, target)

    def _write(self, text: bytes, target: BinaryIO) -> None:
        if not text:
            return
        try:
            if self._live is not None:
                self._live.write(text, target)
            else:
                target.write(text)
                target.flush()
        except (OSError, ValueError):
            return  # nobody reads it any more; the job is to go on
