"""Ranks that are forks of a process which has imported torch: see tests/programs/fork_ranks.py."""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_PROGRAMS = Path(__file__).parent / "programs"
# Read when the interpreter, torch or what it links to is loaded, which was done before.
_READ_WHEN_LOADED = ("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "TORCH_", "MALLOC_", "MPI4PY_")


class ForkedRanks:
    """The process that forks, started when first needed.

    Args:
        directory: for its socket.
        environment: of the process, and nearly that of all ranks.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._address = directory / "socket"
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def can_be(self, variables: Iterable[str]) -> bool:
        """Whether a rank with these variables, beside those of all, can be a fork."""
        return not any(name.startswith(_READ_WHEN_LOADED) for name in variables)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """What mpirun starts for `python ARGUMENTS`."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(_PROGRAMS / "fork_ranks.py"), str(self._address)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._environment,
                start_new_session=True,
            )
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "ready\n"
        # Neither site-packages nor the user's settings: in 20 ms.
        return [sys.executable, "-SE", str(_PROGRAMS / "forked_rank.py"), str(self._address), *arguments]

    def close(self) -> None:
        """End the process, which has no forks any more."""
        if self._process is not None:
            self._process.communicate(timeout=60)
