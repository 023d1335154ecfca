"""summary.json: what a run was and what came out."""

from typing import Any

from hpcasync.comm.roles import Roles
from hpcasync.config.schema import RunConfig
from hpcasync.ps.protocol.updates import PushCounts
from hpcasync.runs.counters import Counters
from hpcasync.runs.records import read_validations

# So few say nothing of the servers: a run that is at its end when it goes on makes none.
_FEW_UPDATES = 100
# Part of the time from which on a server, or a link, is said to be busy all the time.
SATURATED = 0.9


def make_summary(
    config: RunConfig,
    roles: Roles,
    counters: Counters,
    counts: PushCounts,
    versions: dict[str, str | None],
    **facts: object,
) -> dict[str, Any]:
    """What RUN_DIR/summary.json holds of a run with this configuration."""
    num_gradients = sum(counts.staleness.values())
    staleness_sum = sum(staleness * number for staleness, number in counts.staleness.items())
    scores = read_validations(config.output_dir)
    return {
        "name": config.name,
        "mode": config.mode,
        "roles": {"servers": len(roles.server_ranks), "workers": len(roles.worker_ranks), "hosts": roles.describe()},
        **counters.to_dict(),
        "target_tokens_per_second": counters.target_tokens / counters.wall_seconds if counters.wall_seconds else 0.0,
        "staleness": {
            "mean": staleness_sum / num_gradients if num_gradients else 0.0,
            "max": max(counts.staleness, default=0),
            "histogram": {str(staleness): number for staleness, number in sorted(counts.staleness.items())},
        },
        "gradients_pushed": counts.num_pushed,
        "gradients_applied": counts.num_applied,
        "gradients_dropped": counts.num_dropped,
        **facts,
        "best": next((score for score in reversed(scores) if score["is_best"]), None),
        "final": scores[-1] if scores else None,
        "versions": versions,
        "seed": config.seed,
        "configuration_digest": config.digest,
    }


def advice(summary: dict[str, Any], num_updates: int) -> str | None:
    """What would have made a run faster, where it says so itself.

    Args:
        num_updates: made since the last start, which `servers_busy` is of.
    """
    busy = summary.get("servers_busy", 0.0)
    if busy < SATURATED or summary["roles"]["workers"] == 1 or num_updates < _FEW_UPDATES:
        return None
    return (
        f"the servers were busy {busy:.0%} of the time: roles.servers={summary['roles']['servers'] + 1} helps where "
        "there is a core for one more"
    )
