"""Running many `hpcasync` commands, each in a process of its own, without the seconds that imports take."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SERVER = Path(__file__).parent / "programs" / "fork_commands.py"
# Variables of a batch system or launcher would make the commands take themselves for parts of a job.
_JOB_PREFIXES = ("SLURM_", "OMPI_COMM", "PMIX_", "PMI_", "HYDRA_")


@dataclass(frozen=True)
class FinishedCommand:
    """What a command did; `returncode` is None if it ran into its time limit. CPU time is without imports."""

    returncode: int | None
    stdout: str
    stderr: str
    cpu_seconds: float


class ForkedCommands:
    """A context manager: calls inside it run `hpcasync ARGUMENTS`; see tests/programs/fork_commands.py."""

    def __init__(self, directory: Path) -> None:
        self._stdout, self._stderr, self._stdin = (directory / name for name in ("stdout", "stderr", "stdin"))

    def __enter__(self) -> "ForkedCommands":
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_JOB_PREFIXES)}
        environment |= {"OMP_NUM_THREADS": "1", "OMPI_MCA_osc": "^ucx", "HPCASYNC_TERMINAL": "0"}
        self._server = subprocess.Popen(
            [sys.executable, str(_SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(240)
        self._server.stdout.close()

    def __call__(
        self,
        *arguments: str | Path,
        cwd: Path,
        environment: Mapping[str, str | None] | None = None,
        sys_path: Sequence[Path] = (),
        stdin: bytes = b"",
        timeout: float,
    ) -> FinishedCommand:
        """Run one command and wait for its end."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._stdin.write_bytes(stdin)
        for path in (self._stdout, self._stderr):
            path.write_bytes(b"")
        request = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd),
            "environment": dict(environment or {}),
            "sys_path": [str(path) for path in sys_path],
            "stdin": str(self._stdin),
            "stdout": str(self._stdout),
            "stderr": str(self._stderr),
            "timeout": timeout,
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        stdout, stderr = (path.read_text(errors="replace") for path in (self._stdout, self._stderr))
        return FinishedCommand(answer["returncode"], stdout, stderr, answer["cpu_seconds"])
