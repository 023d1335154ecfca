"""How stale gradients are made to be in synchronous training (`simulate.cluster.ForcedStalenessConfig`)."""

from hpcasync.simulate.cluster import ForcedStalenessConfig


def forced_staleness(forced: ForcedStalenessConfig, version: int) -> int:
    """How many updates behind gradients for the update after `version` are."""
    if version >= forced.warmup:
        return forced.updates
    return forced.updates * version // forced.warmup
