"""What every mistake of a user must come to: one message that says what, where and what to do, and nothing harmed."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# A refusal comes within ten seconds. On a busy machine it takes many times as long, but no more CPU time.
MOST_CPU_SECONDS = 10.0
PATIENCE_SECONDS = 120.0


Prepare = Callable[[Path], None]


def nothing(_directory: Path) -> None:
    """A `prepare` for mistakes that are in the command itself."""


@dataclass(frozen=True)
class Case:
    """A command with a mistake.

    Attributes:
        name: of the test.
        arguments: of `hpcasync`, as one line.
        says: what the message must contain of what is wrong, and where.
        cure: what it must contain of what to do.
        prepare: makes the mistake in the directory that the command is run in.
        environment: variables of the command; None unsets.
        stdin: its standard input.
    """

    name: str
    arguments: str
    says: tuple[str, ...]
    cure: str
    prepare: Prepare = nothing
    environment: Mapping[str, str | None] = field(default_factory=dict)
    stdin: bytes = b""


def messages_of(stderr: str) -> list[str]:
    """The error messages in what a job wrote."""
    return [line for line in stderr.splitlines() if line.startswith(("hpcasync: error", "Error: "))]


def check_refusal(returncode: int | None, stderr: str, says: tuple[str, ...], cure: str) -> None:
    """Fail unless a command ended with one message that holds all that it must."""
    assert returncode is not None, f"still running after {PATIENCE_SECONDS:g} s: {stderr}"
    assert returncode == 2, (returncode, stderr)
    assert "Traceback" not in stderr, stderr
    messages = messages_of(stderr)
    assert len(messages) == 1, stderr
    for part in (*says, cure):
        assert part in messages[0], (part, messages[0])


def digest_of(directory: Path) -> dict[str, str]:
    """Every file, directory and link below a directory, with a digest of what it holds."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(directory))] = f"link to {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path.relative_to(directory))] = "directory"
    return found


def remove(*names: str) -> Prepare:
    """A `prepare` that removes files or directories."""

    def act(directory: Path) -> None:
        for name in names:
            path = directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    return act


def write(name: str, content: str | bytes) -> Prepare:
    """A `prepare` that writes a file."""

    def act(directory: Path) -> None:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return act


def change(name: str, edit: Callable[[bytes], bytes]) -> Prepare:
    """A `prepare` that edits a file."""

    def act(directory: Path) -> None:
        path = directory / name
        before = path.read_bytes()
        path.write_bytes(edit(before))
        assert path.read_bytes() != before

    return act


def both(*steps: Prepare) -> Prepare:
    """A `prepare` of several steps."""

    def act(directory: Path) -> None:
        for step in steps:
            step(directory)

    return act


def make_directory(name: str) -> Prepare:
    """A `prepare` that makes a directory."""
    return lambda directory: (directory / name).mkdir(parents=True)


def rename(name: str, other: str) -> Prepare:
    """A `prepare` that renames."""

    def act(directory: Path) -> None:
        (directory / name).rename(directory / other)

    return act
