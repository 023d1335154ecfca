"""Build Horovod against the torch and MPI of this virtual environment, keep the wheel in .wheels/, install it.

Variables HOROVOD_* of the environment are handed on, for example HOROVOD_GPU_OPERATIONS=NCCL.

Horovod 0.28.1 forces C++14, current torch needs C++20: a compiler wrapper takes the newer standard in its
place. The kept wheel is found again by what it was built against, so that a new torch or MPI means a new build.
"""

import hashlib
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import TextIO

import torch

VERSION = "0.28.1"
PROGRESS = re.compile(r"\[\s*(\d+)%\] (?:Building|Linking) \S+ (?:object|shared library) (\S+)")
LOG_TAIL_LINES = 40
BUILD_ENVIRONMENT = {
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITHOUT_GLOO": "1",
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}


def main() -> int:
    """Install a kept wheel that works here, or build one. Returns the exit status."""
    directory = Path(".wheels") / wheel_key()
    wheels = sorted(directory.glob("horovod-*.whl"))
    if wheels and install(wheels[0]):
        print(f"installed the wheel built before: {wheels[0]}")
        return 0
    directory.mkdir(parents=True, exist_ok=True)
    wheel = build(directory)
    if wheel is None:
        return 1
    if not install(wheel):
        print(f"Horovod was built but cannot be imported; the build's log: {directory / 'build.log'}", file=sys.stderr)
        return 1
    print(f"wheel kept in {wheel}")
    return 0


def wheel_key() -> str:
    """Name what a wheel depends on: torch, Python and machine to be read, MPI, settings and this recipe as a digest."""
    mpi = subprocess.run([sys.executable, "-m", "mpi4py", "--mpi-lib-version"], capture_output=True, check=True).stdout
    settings = repr(sorted((name, value) for name, value in os.environ.items() if name.startswith("HOROVOD_")))
    digest = hashlib.sha256(mpi + settings.encode() + Path(__file__).read_bytes()).hexdigest()[:8]
    return f"torch{torch.__version__}-{sys.implementation.cache_tag}-{platform.machine()}-{digest}"


def install(wheel: Path) -> bool:
    """Install a wheel and tell whether it can be imported, which a wheel from another system often cannot."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "-c", "constraints.txt"]
    # The wheel itself without its requirements, as pip would otherwise weigh it against the index; then these.
    subprocess.run([*pip, "--force-reinstall", "--no-deps", str(wheel)], check=True)
    subprocess.run([*pip, f"horovod=={VERSION}"], check=True)
    return subprocess.run([sys.executable, "-c", "import horovod.torch"], capture_output=True).returncode == 0


def build(directory: Path) -> Path | None:
    """Build the wheel into `directory`, with the compiler's progress on the terminal and all output in build.log."""
    log_path = directory / "build.log"
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"building Horovod {VERSION} with {jobs} jobs, some minutes; log: {log_path}", flush=True)
    with tempfile.TemporaryDirectory(prefix="horovod-build-") as temporary:
        scratch = Path(temporary)
        environment = os.environ | BUILD_ENVIRONMENT | {
            "CXX": str(write_compiler_wrapper(scratch)),
            "MAKEFLAGS": f"-j{jobs}",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": temporary,
        }  # fmt: skip
        # pip's own cache knows a built wheel by its source alone, not by the torch that it was built against.
        command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-cache-dir", "--no-build-isolation", "--no-deps"]
        command += ["--no-binary", "horovod", "--wheel-dir", temporary, f"horovod=={VERSION}"]
        with log_path.open("w") as log:
            status, tail = run_with_progress(command, environment, log)
        built = list(scratch.glob("horovod-*.whl"))
        if status != 0 or not built:
            print("".join(tail), file=sys.stderr)
            print(f"building Horovod failed (status {status}); the whole log: {log_path}", file=sys.stderr)
            print("Every asynchronous mode works without it: make setup HOROVOD=0", file=sys.stderr)
            return None
        kept = directory / built[0].name
        # Copied under another name first: an interrupted copy must not pass for a wheel.
        shutil.copyfile(built[0], directory / "partial")
        (directory / "partial").replace(kept)
        return kept


WRAPPER = """\
#!/bin/sh
# Only in place of C++14, which Horovod asks for. nvcc calls this too, and must be given the dialect that it asks for.
for argument; do
  shift
  case $argument in -std=c++14 | -std=gnu++14) argument=-std=c++20 ;; esac
  set -- "$@" "$argument"
done
exec {compiler} "$@"
"""


def write_compiler_wrapper(directory: Path) -> Path:
    """Write a script that is the C++ compiler with C++20 in place of C++14."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "g++"
    wrapper = directory / "cxx"
    wrapper.write_text(WRAPPER.format(compiler=compiler))
    wrapper.chmod(0o755)
    return wrapper


def run_with_progress(command: list[str], environment: dict[str, str], log: TextIO) -> tuple[int, deque[str]]:
    """Run the build; returns its status and the last lines of its output."""
    started = time.monotonic()
    # A session of its own, so that an interruption can end make and the compilers with it.
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_feed, args=(process.stdout, lines), daemon=True).start()
    tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)
    progress = ProgressLine(started)
    try:
        while (line := next_line(lines, progress)) is not None:
            log.write(line)
            tail.append(line)
            if match := PROGRESS.search(line):
                progress.update(int(match[1]), Path(match[2]).name.removesuffix(".o"))
        status = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    progress.finish(status == 0)
    return status, tail


def next_line(lines: "queue.Queue[str | None]", progress: "ProgressLine") -> str | None:
    """Wait for a line of output (None: the end), refreshing the elapsed time meanwhile."""
    while True:
        try:
            return lines.get(timeout=1)
        except queue.Empty:
            progress.refresh()


def _feed(stream: TextIO, lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


class ProgressLine:
    """One line that moves on a terminal; in a log a line for each tenth of the work."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._is_terminal = sys.stdout.isatty()
        self._percent = 0
        self._what = "fetching and configuring"
        self._printed_percent = -1
        self.refresh()

    def update(self, percent: int, what: str) -> None:
        """Show that `what` is being compiled, after `percent` of the work."""
        self._percent, self._what = percent, what
        self.refresh()

    def refresh(self) -> None:
        """Show the present state with the time elapsed."""
        text = f"[{self._percent:3d}%] building horovod: {self._what} ({time.monotonic() - self._started:.0f} s)"
        if self._is_terminal:
            print(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif self._printed_percent < 0 or self._percent >= self._printed_percent + 10:
            self._printed_percent = self._percent
            print(text, flush=True)

    def finish(self, succeeded: bool) -> None:
        """End the line."""
        if succeeded:
            self.update(100, "done")
        if self._is_terminal:
            print(flush=True)


if __name__ == "__main__":
    # As an exception, so that the build is ended too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
