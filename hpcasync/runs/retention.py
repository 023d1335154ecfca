"""Which checkpoints and snapshots are kept; arithmetic on their names."""

from collections.abc import Collection, Sequence


def superseded(names: Sequence[str], *, keep: int, keep_every: int = 0, protected: Collection[str] = ()) -> list[str]:
    """The names that are kept no longer.

    Args:
        names: such as "u00000400", the number of updates; oldest first.
        keep: so many of the newest are kept; 0: all.
        keep_every: those whose number of updates is a multiple are kept; 0: none.
        protected: kept whatever their age.
    """
    recent = names[-keep:]
    return [
        name
        for name in names
        if name not in recent and name not in protected and not (keep_every and int(name[1:]) % keep_every == 0)
    ]
