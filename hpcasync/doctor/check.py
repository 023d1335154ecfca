"""The result of one check."""

from dataclasses import dataclass, field
from typing import Any, Literal

# ok: there and working; limited: working, with a drawback; missing: not there; broken: there, not working.
Status = Literal["ok", "limited", "missing", "broken"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked for.

    Attributes:
        name: stable name, for machines.
        status: what was found.
        detail: one line for people: version and kind, or what is wrong.
        is_required: whether the main job, asynchronous training on CPU, needs it.
        disables: what does not work for lack of it; empty when ok.
        cure: command or action that mends it; empty when ok.
        facts: for machines, with JSON's types.
    """

    name: str
    status: Status
    detail: str
    is_required: bool = False
    disables: str = ""
    cure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_present(self) -> bool:
        """Whether it can be used."""
        return self.status in ("ok", "limited")


def can_run_main_job(checks: list[Check]) -> bool:
    """Whether asynchronous training on CPU can run: all that it needs is there and works."""
    return all(check.is_present for check in checks if check.is_required)
