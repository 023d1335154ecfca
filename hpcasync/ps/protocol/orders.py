"""What the coordinator tells all servers to do; they execute the same orders in the same sequence."""

import enum
from typing import NamedTuple


class Kind(enum.IntEnum):
    """What is to be done."""

    ACCUMULATE = 0
    DROP = 1
    APPLY = 2
    DISCARD = 3  # the group: training is over
    SAVE = 4
    FINISH = 5


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
