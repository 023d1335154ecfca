"""Time limits as SLURM writes them (`man sbatch`, --time)."""

import re

from hpcasync.errors import UserError

_FORMS = (
    re.compile(r"(?P<minutes>\d{1,9})(:(?P<seconds>\d{1,9}))?"),
    re.compile(r"(?P<hours>\d{1,9}):(?P<minutes>\d{1,9}):(?P<seconds>\d{1,9})"),
    re.compile(r"(?P<days>\d{1,9})-(?P<hours>\d{1,9})(:(?P<minutes>\d{1,9})(:(?P<seconds>\d{1,9}))?)?"),
)
_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
_UNLIMITED = ("infinite", "UNLIMITED")


def parse_time(text: str) -> int | None:
    """A time limit in seconds; None for no limit."""
    if text in _UNLIMITED:
        return None
    for form in _FORMS:
        if match := form.fullmatch(text):
            return sum(_SECONDS[unit] * int(count) for unit, count in match.groupdict().items() if count)
    raise UserError(f"{text!r} is no time limit of SLURM: give MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS")
