"""`hpcasync ARGUMENTS`, in which one rank throws in the middle of training: RANK ARGUMENTS…"""

import sys
from typing import Any

from hpcasync.__main__ import main
from hpcasync.launch.ranks import rank_from_environment
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.train.loop.step import GradientStep

_CALLS_BEFORE = 3


def fail_later(owner: type, method: str) -> None:
    """Let a method throw when it is called for the fourth time."""
    original = getattr(owner, method)
    num_calls = 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls > _CALLS_BEFORE:
            raise ZeroDivisionError("in the middle of training")
        return original(*arguments, **named)

    setattr(owner, method, failing)


if __name__ == "__main__":
    place = rank_from_environment()
    assert place is not None
    failing_rank = int(sys.argv.pop(1))
    if place.world_rank == failing_rank:
        # A server applies updates and computes no gradients.
        fail_later(GradientStep, "run")
        fail_later(ShardState, "apply")
    main()
