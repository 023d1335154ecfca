"""Commands that messages suggest, as a shell reads them, whatever is in the names in them."""

import re
import shlex
import shutil
import sys
from pathlib import Path


def command_line(*words: str | Path) -> str:
    """One line to paste into a shell."""
    return shlex.join(as_argument(word) if isinstance(word, Path) else word for word in words)


def as_argument(path: Path) -> str:
    """A path in a form that no command takes for an option, a home or a text in quotes."""
    return str(path) if re.match(r"[\w./]", str(path)) else str(path.absolute())


def own_command(*words: str | Path) -> str:
    """A command of hpcasync, whether or not its environment is active."""
    return command_line(*(["hpcasync"] if shutil.which("hpcasync") else [sys.executable, "-m", "hpcasync"]), *words)


def this_command_on(num_ranks: int) -> str:
    """What starts the program that this process runs on so many ranks."""
    program = Path(sys.argv[0])
    is_own = "hpcasync" in (program.name, program.parent.name)  # the latter: python -m hpcasync
    words: list[str | Path] = [] if is_own else ["python", program]
    return own_command("launch", "-n", str(num_ranks), "--", *words, *sys.argv[1:])


def pip_install(*words: str) -> str:
    """What installs packages into this process's environment."""
    return command_line(sys.executable, "-m", "pip", "install", *words)
