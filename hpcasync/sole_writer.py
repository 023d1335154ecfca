"""One writer of a directory at a time: a file in it that the writer holds locked, touches, and that says who it is.

The lock is one of fcntl(2), which NFS, Lustre and others share between hosts, and which the kernel, or the file server,
takes back from the dead. Not all do: some mounts keep locks on their own host, or have none. So the writer touches the
file every few seconds, too, and whom the file names on another host is taken for dead when that has not happened for a
while. It ends by itself when it finds the directory taken, because it was stopped for so long.
"""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from hpcasync.errors import UserError, describe

LOCK_FILE = "lock"
_BEAT_SECONDS = 5.0
# A writer on another host that has not touched its file for so long is dead.
_SILENCE_SECONDS = 30.0
# A file server keeps the locks of a host that is gone until its lease has run out: 90 s with NFSv4.
_LEASE_SECONDS = 120.0
# A job that was killed lets go a moment after `launch` or SLURM starts the next.
_HANDOVER_SECONDS = 3.0
_LOOK_SECONDS = 0.5
_HELD_ERRORS = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_JOB_VARIABLES = {"SLURM_JOB_ID": "SLURM job", "PBS_JOBID": "PBS job", "LSB_JOBID": "LSF job"}
_MOST_BYTES = 65536


@dataclass(frozen=True)
class Writer:
    """Who writes.

    Attributes:
        host: its name.
        kernel: identifies the running kernel, whatever the containers on it are called.
        process: its number.
        job: of the batch system; empty without one.
        since: when it began.
        command: what it does.
    """

    host: str
    kernel: str
    process: int
    job: str
    since: str
    command: str

    @classmethod
    def this_process(cls) -> "Writer":
        job = next((f"{kind} {os.environ[name]}" for name, kind in _JOB_VARIABLES.items() if os.environ.get(name)), "")
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        command = shlex.join(["hpcasync", *sys.argv[1:]])
        return cls(socket.gethostname(), _this_kernel(), os.getpid(), job, since, command)

    @classmethod
    def parse(cls, content: bytes) -> "Writer | None":
        """The inverse of `to_bytes`; None where there is nothing, or only a part yet."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    def __str__(self) -> str:
        job = f", {self.job}" if self.job else ""
        return f"process {self.process} on {self.host}{job}, since {self.since} (`{self.command}`)"


@contextmanager
def sole_writer(directory: Path, cure: str, elsewhere: str = "name another place") -> Iterator[None]:
    """Be the only writer of a directory, which is made if it is not there, and removed again if nothing was written.

    Args:
        directory: of a run, say.
        cure: what to do where somebody else writes, for the message.
        elsewhere: what to do where it cannot be written.
    """
    made: list[Path] = []
    path, writer = directory / LOCK_FILE, Writer.this_process()
    try:
        try:
            made += [missing for missing in (directory, *directory.parents) if not missing.exists()]
            descriptor = _take(path, writer, cure)
        except OSError as error:
            raise UserError(f"cannot write {directory}: {describe(error, elsewhere)}") from error
        has_ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(descriptor, directory, writer, has_ended), daemon=True)
        beat.start()
        try:
            yield
        finally:
            has_ended.set()
            beat.join()
            with suppress(OSError):
                if _read(descriptor) == writer.to_bytes() and _is_same_file(descriptor, path):
                    path.unlink()  # before the lock goes: who waits for it looks whether its file is still there
            os.close(descriptor)
    finally:
        for empty in made:
            with suppress(OSError):
                empty.rmdir()


class Verdict(Enum):
    """What to do about a file."""

    TAKE = "take it"
    REFUSE = "somebody else writes"
    WAIT = "look again"


def judge(
    *, is_granted: bool | None, is_empty: bool, is_near: bool, is_touched: bool, waited_seconds: float
) -> Verdict:
    """Decide about a file that was looked at.

    Args:
        is_granted: whether the lock was; None: this file system has none.
        is_near: whom it names runs, or ran, on this kernel, which tells of locks without fail.
        is_touched: since the first look.
        waited_seconds: since the first look.
    """
    if is_granted is False:
        is_alive = is_touched or waited_seconds > _LEASE_SECONDS or (is_near and waited_seconds > _HANDOVER_SECONDS)
        return Verdict.REFUSE if is_alive else Verdict.WAIT
    if is_empty or (is_near and is_granted):
        return Verdict.TAKE
    if is_touched:
        return Verdict.REFUSE
    return Verdict.TAKE if waited_seconds > _SILENCE_SECONDS else Verdict.WAIT


def _take(path: Path, writer: Writer, cure: str) -> int:
    """A descriptor of the file, locked and with this writer's name in it."""
    began, first_touched, has_said = time.monotonic(), None, False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # the one before may have removed or renamed it
        # Opened anew for each look: that makes a network file system ask its server.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        is_granted = _try_lock(descriptor)
        content, touched = _read(descriptor), os.fstat(descriptor).st_mtime_ns
        if not _is_same_file(descriptor, path):
            os.close(descriptor)
            continue
        first_touched = touched if first_touched is None else first_touched
        other = Writer.parse(content)
        is_near = other is not None and other.kernel == writer.kernel
        waited = time.monotonic() - began
        verdict = judge(
            is_granted=is_granted,
            is_empty=not content,
            is_near=is_near,
            is_touched=touched != first_touched,
            waited_seconds=waited,
        )
        if verdict is Verdict.TAKE:
            _write(descriptor, writer.to_bytes())
            return descriptor
        os.close(descriptor)
        if verdict is Verdict.REFUSE:
            is_silent = touched == first_touched and not is_near
            silence = f", silent for {waited:.0f} s, but its lock still holds" if is_silent else ""
            raise UserError(f"{path.parent} is being written by {other or 'another process'}{silence}: {cure}")
        if not has_said and not is_near and waited > _LOOK_SECONDS:
            has_said = True
            looked_for = other or "its writer"
            print(f"hpcasync: {path.parent}: looking for a sign of life of {looked_for}", file=sys.stderr, flush=True)
        time.sleep(_LOOK_SECONDS)


def _try_lock(descriptor: int) -> bool | None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_ERRORS:
            return False
        if error.errno in _NO_LOCKS_ERRORS:
            return None
        os.close(descriptor)
        raise
    return True


def _beat(descriptor: int, directory: Path, writer: Writer, has_ended: threading.Event) -> None:
    while not has_ended.wait(_BEAT_SECONDS):
        with suppress(OSError):
            os.utime(descriptor)
            found = _read(descriptor)
            if found != writer.to_bytes():
                other = Writer.parse(found) or "another process"
                raise UserError(f"{directory} has been taken by {other}, for this process was silent for long: it ends")


def _is_same_file(descriptor: int, path: Path) -> bool:
    """Whether nobody has removed the file since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, _MOST_BYTES, 0)


def _write(descriptor: int, content: bytes) -> None:
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))
    os.fsync(descriptor)


def _this_kernel() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
