"""Colours that tell modes and activities apart, after Okabe & Ito's set for readers who see few colours."""

from collections import Counter
from collections.abc import Sequence

from hpcasync.report.groups import Group

# Shades of one hue for groups of one mode, the plainest first.
_SHADES = {
    "sync": ("#3d3d3d", "#8a8a8a", "#b4b4b4", "#5c5248", "#a39686"),
    "async": ("#c1440e", "#e8835c", "#8f2d05", "#f2b199", "#6b2a14"),
    "async-local": ("#d99000", "#f0bf55", "#9c6700", "#f6dca0", "#6d4a05"),
    "async-global": ("#0067a8", "#4fa3d8", "#003f6b", "#9ccbeb", "#1d3f7a"),
    "async-combined": ("#00845f", "#4fbd9d", "#00553d", "#a4dcca", "#2c6b3c"),
}
_OTHER = ("#7b4fa3",)

ACTIVITY_COLOURS = {
    "compute": "#2f8f6b",
    "push": "#e0a526",
    "wait": "#d9cfc4",
    "pull": "#4c86c6",
    "allreduce": "#d0673f",
    "accumulate": "#8fbf9f",
    "read": "#c3d9a0",
    "apply": "#34506b",
    "save": "#8b5fbf",
    "drop": "#b3261e",
    "other": "#a9a29a",
}
OUTSIDE_COLOUR = "#f1efec"


def group_colours(groups: Sequence[Group]) -> list[str]:
    seen: Counter[str] = Counter()
    colours = []
    for group in groups:
        shades = _SHADES.get(group.mode, _OTHER)
        colours.append(shades[seen[group.mode] % len(shades)])
        seen[group.mode] += 1
    return colours
