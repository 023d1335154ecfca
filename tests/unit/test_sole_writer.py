"""One writer of a directory: refused while it lives, on this host or another, taken over when it has died."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcasync import sole_writer as module
from hpcasync.errors import UserError
from hpcasync.sole_writer import LOCK_FILE, Verdict, Writer, judge, sole_writer

HOLD = """
import sys, time
from pathlib import Path
from hpcasync.sole_writer import sole_writer
with sole_writer(Path(sys.argv[1]), "wait"):
    print("held", flush=True)
    sys.stdin.read()
"""
CURE = "wait for it"


@contextmanager
def holder(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that writes the directory until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


def write_lock(directory: Path, **changes: str) -> Path:
    """What a writer leaves that has died; on another host, with another kernel."""
    directory.mkdir(exist_ok=True)
    (directory / LOCK_FILE).write_bytes(
        json.dumps({**json.loads(Writer.this_process().to_bytes()), **changes}).encode()
    )
    return directory / LOCK_FILE


def refused(directory: Path, *parts: str) -> None:
    """Fail unless the directory cannot be taken, for these reasons."""
    with pytest.raises(UserError) as caught, sole_writer(directory, CURE):
        pytest.fail("taken")
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        for _ in range(2):
            refused(tmp_path / "run", f"run is being written by process {process.pid} on ", CURE)
        assert (tmp_path / "run" / LOCK_FILE).is_file()
    with sole_writer(tmp_path / "run", CURE):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
    assert not list(tmp_path.iterdir()), "nothing was written, nothing is left"


def test_the_kernel_takes_the_lock_back_from_the_dead(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        assert (tmp_path / LOCK_FILE).is_file(), "it could not tidy up"
        with sole_writer(tmp_path, CURE):
            assert f'"process": {os.getpid()}' in (tmp_path / LOCK_FILE).read_text()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_writer_on_another_host_whose_locks_are_not_seen_here_is_known_by_its_touches(tmp_path: Path) -> None:
    path = write_lock(tmp_path, host="node7", kernel="another", job="SLURM job 12")
    has_ended = threading.Event()

    def touch() -> None:
        while not has_ended.wait(0.3):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        refused(tmp_path, " on node7, SLURM job 12, since ", CURE)
    finally:
        has_ended.set()
        thread.join()


def test_a_silent_writer_on_another_host_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 1.5)
    write_lock(tmp_path, host="node7", kernel="another")
    with sole_writer(tmp_path, CURE):
        assert f'"process": {os.getpid()}' in (tmp_path / LOCK_FILE).read_text()
    assert "looking for a sign of life of process" in capfd.readouterr().err


def test_a_writer_that_was_taken_for_dead_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.1)
    raised: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: raised.append(arguments.exc_value))
    with sole_writer(tmp_path, CURE):
        before = (tmp_path / LOCK_FILE).stat().st_mtime_ns
        write_lock(tmp_path, host="node7", kernel="another")
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and thread.name.endswith("(_beat)"):
                thread.join(60)
        assert (tmp_path / LOCK_FILE).stat().st_mtime_ns > before
    assert (tmp_path / LOCK_FILE).exists(), "it is the other's"
    assert isinstance(raised[0], UserError) and "has been taken by process" in str(raised[0])


GONE, BEFORE = module._SILENCE_SECONDS + 1, module._SILENCE_SECONDS - 1
LEASE = module._LEASE_SECONDS


@pytest.mark.parametrize(
    ("is_granted", "is_empty", "is_near", "is_touched", "waited", "verdict"),
    [
        (True, True, False, False, 0, Verdict.TAKE),  # a new file
        (True, False, True, False, 0, Verdict.TAKE),  # died on this host
        (True, False, False, False, 0, Verdict.WAIT),  # another host, whose locks may not be seen
        (True, False, False, True, 5, Verdict.REFUSE),
        (True, False, False, False, GONE, Verdict.TAKE),
        (False, True, False, False, 0, Verdict.WAIT),  # has not written its name yet
        (False, False, True, False, 0, Verdict.WAIT),  # may be about to end
        (False, False, True, False, 4, Verdict.REFUSE),
        (False, False, False, True, 1, Verdict.REFUSE),
        (False, False, False, False, GONE, Verdict.WAIT),  # a dead host's lock
        (False, False, False, False, LEASE + 1, Verdict.REFUSE),
        (None, True, False, False, 0, Verdict.TAKE),  # no locks at all
        (None, False, True, False, BEFORE, Verdict.WAIT),
        (None, False, True, True, 1, Verdict.REFUSE),
        (None, False, True, False, GONE, Verdict.TAKE),
    ],
)
def test_decisions(
    is_granted: bool | None, is_empty: bool, is_near: bool, is_touched: bool, waited: float, verdict: Verdict
) -> None:
    found = judge(
        is_granted=is_granted, is_empty=is_empty, is_near=is_near, is_touched=is_touched, waited_seconds=waited
    )
    assert found is verdict


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "run", "file/run: Not a directory; name another place")
