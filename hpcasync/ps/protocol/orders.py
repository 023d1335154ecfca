"""What the coordinator tells all servers to do; they execute the same orders in the same sequence."""

import enum
from typing import NamedTuple

from hpcasync.ps.protocol.lookahead import lookahead_steps
from hpcasync.ps.protocol.updates import Update


class Kind(enum.IntEnum):
    """What is to be done."""

    ACCUMULATE = 0
    DROP = 1
    APPLY = 2
    DISCARD = 3  # the group: training is over
    SAVE = 4
    FINISH = 5
    READ = 6  # the slots of the group: of a server to itself, while it has nothing else to do


class Order(NamedTuple):
    """One order.

    Attributes:
        kind: what to do.
        worker, sequence: of the push to accumulate or drop.
        version: that this gradient was computed from; to apply: that the update makes.
        num_tokens: target tokens of the gradient, or of the update.
        learning_rate: of the update.
        lookahead: steps that what is published is ahead (`ps.protocol.lookahead`).
    """

    kind: Kind
    worker: int = 0
    sequence: int = 0
    version: int = 0
    num_tokens: int = 0
    learning_rate: float = 0.0
    lookahead: float = 0.0

    @classmethod
    def to_apply(cls, update: Update, learning_rate: float, lookahead: float) -> "Order":
        """The order to make an update; `learning_rate` is the schedule's, `lookahead` staleness.lookahead."""
        steps = lookahead_steps(lookahead, update.staleness)
        return cls(Kind.APPLY, 0, 0, update.version, update.num_tokens, learning_rate * update.rate_factor, steps)
