"""Threads of commands that people start beside other things."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcasync.cli import cores
from hpcasync.cli.cores import free_cores, usable_cores


@pytest.mark.parametrize(
    ("limit", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64), ("", 64)]
)
def test_a_container_has_as_many_cores_as_it_has_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int
) -> None:
    if limit:
        (tmp_path / "cpu.max").write_text(limit + "\n")
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert usable_cores() == expected


def test_a_busy_core_is_not_free() -> None:
    core = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, {{{core}}})\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.1)
            assert 1 <= free_cores() <= max(1, len(os.sched_getaffinity(0)) - 1)
        finally:
            process.kill()


@pytest.mark.parametrize(("given", "expected"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_wait_passively_unless_the_user_says_otherwise(given: dict[str, str], expected: str) -> None:
    program = (
        "import os\nfrom click.testing import CliRunner\nfrom hpcasync.cli.main import cli\n"
        "CliRunner().invoke(cli, ['translate', '--help'])\nprint(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    assert subprocess.check_output([sys.executable, "-c", program], env=environment, text=True).strip() == expected
