"""What to do about gradients computed from old parameters: one small class per policy. Pure decisions.

The staleness of a gradient is the number of updates made between the version it was computed from and the update that
applies it.
"""

from collections.abc import Collection, Iterable

from hpcasync.choices import StalenessPolicy


class Unbounded:
    """Every gradient is applied as it is, however stale. The base of the policies that do otherwise."""

    def accepts(self, staleness: int) -> bool:
        """Whether a gradient of this staleness is applied at all (else it is dropped and counted)."""
        return True

    def may_advance(self, behind: Iterable[int]) -> bool:
        """Whether the next update may be made now.

        Args:
            behind: for each worker that is computing, the least staleness its gradient would have after the update.
        """
        return True

    def rate_factor(self, weighted: Collection[tuple[int, int]]) -> float:
        """Factor on the learning rate of an update.

        Args:
            weighted: (staleness, target tokens) of each gradient in it.
        """
        return 1.0


class Wait(Unbounded):
    """The fast wait: no update is made while it would make a gradient that is being computed staler than `limit`.

    Source: Ho et al. 2013, "More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server" (NIPS),
    with updates in place of clocks. `limit` 0 is a barrier before every update.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def may_advance(self, behind: Iterable[int]) -> bool:
        return all(staleness <= self._limit for staleness in behind)


class Drop(Unbounded):
    """Gradients staler than `limit` are dropped.

    Source: Maranjyan, Tyurin, Richtárik 2025, "Ringmaster ASGD: The First Asynchronous SGD with Optimal Time
    Complexity" (arXiv 2501.16168), algorithm 4.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def accepts(self, staleness: int) -> bool:
        return staleness <= self._limit


class Scale(Unbounded):
    """The learning rate is divided by staleness; gradients up to `limit` updates stale (at least 1) count in full.

    An update's factor is the mean over its gradients, weighted by target tokens. Source: Zhang et al. 2016,
    "Staleness-aware Async-SGD for Distributed Deep Learning" (IJCAI), equation 6, which has limit 1 and groups of one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)

    def rate_factor(self, weighted: Collection[tuple[int, int]]) -> float:
        total = sum(tokens for _, tokens in weighted)
        return sum(tokens * min(1.0, self._limit / max(1, staleness)) for staleness, tokens in weighted) / total


def make_policy(limit: int | None, policy: StalenessPolicy) -> Unbounded:
    """The policy of a configuration; no limit, no policy."""
    if limit is None:
        return Unbounded()
    return {"wait": Wait, "drop": Drop, "scale": Scale}[policy](limit)
