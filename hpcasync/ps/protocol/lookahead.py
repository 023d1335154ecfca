"""Parameters for workers whose gradients will be stale: further on, where the servers' are expected to be by then.

A gradient that is applied s updates after the version that it was computed from belongs to parameters which are s steps
behind. With a momentum as Adam's one step is much like the one before, so s steps ahead of a version is about where
the last step leads when it is repeated s times. Servers publish that point, for the mean staleness of the gradients
in the update; their own parameters, which are saved and scored, do not change. Where fresh and stale gradients are
summed, those computed ahead and those computed behind cancel out to first order.

Source: Hakimi, Barkai, Gabel, Schuster 2019, "Taming Momentum in a Distributed Asynchronous Environment" (arXiv
1907.11612), who let workers compute at an estimate of the future parameters made from the momentum; here it is made
from the last step, which any optimizer has.
"""

from collections.abc import Sequence


def lookahead_steps(factor: float, staleness: Sequence[int]) -> float:
    """How many steps like the last one workers are to be ahead.

    Args:
        factor: staleness.lookahead; 1 for the whole mean staleness, 0 for none.
        staleness: of each gradient in the last update, in updates.
    """
    return factor * sum(staleness) / len(staleness) if factor else 0.0
