"""How large a rate stale momentum bears on a quadratic: the theory behind docs/staleness.md.

    .venv/bin/python benchmarks/stale_momentum.py

A loss of curvature c, Adam's second moment taken for constant, learning rate r: the largest r * c with which the
parameters do not oscillate ever more, where a part s of the gradients (the mean staleness) is one update old and the
others are fresh. The step is along m + numerator * (g - m), with m the mean of gradients g with decay b1 (numerator
1 - b1 is Nesterov's); gradients are computed `lookahead` times the mean staleness ahead, along the last step.
"""

from functools import reduce

import click
import numpy as np

_DECAY = 0.9


def largest_rate(staleness: float, numerator: float, lookahead: float) -> float:
    """Times curvature. The roots of the loop's polynomial leave the unit circle there."""
    ahead = lookahead * staleness
    # In powers of the delay by one update: step for a gradient, staleness, lookahead.
    step = [1 - _DECAY + numerator * _DECAY, -numerator * _DECAY]
    around = reduce(np.convolve, ([0, 1], step, [1 - staleness, staleness], [1 + ahead, -ahead]))
    free = np.zeros(max(3, len(around)))
    free[:3] = np.convolve([1, -_DECAY], [1, -1])
    rate = 1e-3
    while np.abs(np.roots(free + rate * np.pad(around, (0, len(free) - len(around))))).max() < 1:
        rate *= 1.01
    return rate


@click.command()
def main() -> None:
    """Print a table: staleness by row, ways to step by column."""
    ways = [(0.0, 0.0), (0.0, 1.0), (0.0, 1.5), (1 - _DECAY, 0.0), (1 - _DECAY, 0.5), (1 - _DECAY, 1.0)]
    click.echo("staleness " + " ".join(f"{'Nesterov' if n else 'Adam'}+{look:g}".rjust(12) for n, look in ways))
    for staleness in (0.0, 0.25, 0.375, 0.5, 0.75, 1.0):
        click.echo(f"{staleness:9g} " + " ".join(f"{largest_rate(staleness, *way):12.2f}" for way in ways))


if __name__ == "__main__":
    main()
