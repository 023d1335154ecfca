"""`hpcasync completion`: scripts for shells, and what they ask for."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from hpcasync.cli.main import COMMANDS, cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0 and f"_HPCASYNC_COMPLETE={shell}_complete" in result.output


def test_commands_and_options_are_completed() -> None:
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'hpcasync'; from hpcasync.__main__ import main; main()"]
    for words, position, expected in (("hpcasync ", "1", "export"), ("hpcasync export --f", "2", "--format")):
        asked = {"_HPCASYNC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": position}
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **asked})
        assert f"plain,{expected}" in done.stdout.splitlines(), done.stdout + done.stderr
    assert "completion" in COMMANDS
