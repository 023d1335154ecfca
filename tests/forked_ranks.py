"""Ranks that are forks of a process which has imported torch: see tests/programs/fork_ranks.py."""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from hpcasync.bench.network_hosts import NetworkHosts

_PROGRAMS = Path(__file__).parent / "programs"
# Of a host's name in that of its socket, which has to be short.
_NAME_LENGTH = 16
# `hpcasync`, whose ranks are what is named first.
_HPCASYNC = "import sys; sys.executable = sys.argv.pop(1); from hpcasync.__main__ import main; main()"
# Read when the interpreter, torch or what it links to is loaded, which was done before.
_READ_WHEN_LOADED = ("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH_", "MALLOC_", "MPI4PY_")


class ForkedRanks:
    """The process that forks, one on each host; started when first needed.

    Args:
        directory: for sockets.
        environment: of the process, and nearly that of all ranks.
        modules: imported before, beside those that all ranks have.
        hosts: where the ranks run, if not here.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        *,
        modules: Sequence[str] = (),
        hosts: NetworkHosts | None = None,
    ) -> None:
        self._path = directory / "python"
        self._environment = environment
        self._modules = modules
        self._hosts = hosts
        self._processes: list[subprocess.Popen[str]] = []

    def can_be(self, variables: Iterable[str]) -> bool:
        """Whether a rank with these variables, beside those of all, can be a fork."""
        return not any(name.startswith(_READ_WHEN_LOADED) for name in variables)

    @property
    def python(self) -> str:
        """What to start in the place of Python: forks are ready."""
        if not self._processes:
            self._start()
        return str(self._path)

    @property
    def hpcasync(self) -> list[str]:
        """What to start in the place of `hpcasync`, for ranks of `launch` that are forks."""
        return [sys.executable, "-c", _HPCASYNC, self.python]

    def rank(self, started: psutil.Process) -> psutil.Process | None:
        """The fork of what mpirun has started; None: there is none."""
        try:
            return psutil.Process(int(Path(f"{self._path}.{started.pid}").read_text()))
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None

    def close(self) -> None:
        """End the processes, which have no forks any more."""
        for process in self._processes:
            process.communicate(timeout=240)

    def _start(self) -> None:
        # Neither site-packages nor the user's settings: in 20 ms.
        self._path.write_text(f"#!{sys.executable} -SE\n{(_PROGRAMS / 'forked_rank.py').read_text()}")
        self._path.chmod(0o755)
        names = [os.uname().nodename] if self._hosts is None else list(self._hosts.addresses)
        for number, name in enumerate(names):
            command = [
                sys.executable,
                str(_PROGRAMS / "fork_ranks.py"),
                f"{self._path}.{name[:_NAME_LENGTH]}",
                *self._modules,
            ]
            process = subprocess.Popen(
                command if self._hosts is None else self._hosts.on(number, command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
                start_new_session=True,
            )
            self._processes.append(process)
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
