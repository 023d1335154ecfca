"""Types of arguments and options: paths in which ~ is expanded, and numbers that what is below can take."""

import math
import re
from pathlib import Path
from typing import Any

import click

from hpcasync.config.section import MOST_THREADS
from hpcasync.config.strict import usable_path
from hpcasync.data.manifest import HELD_OUT

# Of C's int, in which SentencePiece, torch and MPI count.
MOST = 2**31 - 1
# Memory grows with it, and results have long ceased to.
MOST_BEAM = 10_000


def _shortened(value: Any) -> Any:
    """For messages: no number has that many digits."""
    return f"{value[:50]}…" if isinstance(value, str) and len(value) > 50 else value


class FilePath(click.Path):
    """A path with ~ and ~user expanded, also in `--out=~/x`, where no shell does so."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(usable_path(Path(value)), param, ctx)
        except ValueError as error:
            self.fail(f"{str(value)[:200]!r}: {error}", param, ctx)


class Count(click.IntRange):
    """A whole number, by default up to what C's int holds."""

    def __init__(self, min: int = 0, max: int = MOST) -> None:
        self.most = max
        super().__init__(min, None if max == MOST else max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(_shortened(value), param, ctx)
        if number > self.most:
            self.fail(f"{_shortened(value)} is more than {self.most}, the most that is possible.", param, ctx)
        return number


class Number(click.FloatRange):
    """A finite number. `can_be_unlimited`: infinity stands for no limit."""

    def __init__(self, min: float | None = None, max: float | None = None, *, can_be_unlimited: bool = False) -> None:
        self.can_be_unlimited = can_be_unlimited
        super().__init__(min, max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(_shortened(value), param, ctx)
        if math.isnan(number) or (math.isinf(number) and not self.can_be_unlimited):
            self.fail(f"{_shortened(value)} is not a finite number.", param, ctx)
        return number


class Split(click.ParamType[str]):
    """The name of held-out text of a corpus."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not re.match(HELD_OUT, str(value)):
            self.fail(f"{_shortened(value)!r}: choose from valid, test, test2, test3 and so on.", param, ctx)
        return value


SPLIT = Split()
FILE = FilePath(path_type=Path)
DIRECTORY = FilePath(exists=True, file_okay=False, path_type=str)
BEAM = Count(1, MOST_BEAM)
THREADS = Count(1, MOST_THREADS)
