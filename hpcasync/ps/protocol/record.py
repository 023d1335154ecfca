"""What travels with a gradient: its weight, the version it was computed from, and the batches it covers."""

import math
from dataclasses import dataclass

# Of a program that tells no loss: no sum of losses comes to it, and no sum with it to anything else but NaN.
UNKNOWN_LOSS = -math.inf


@dataclass(frozen=True)
class PushRecord:
    """The record of one push.

    Attributes:
        version: version of the parameters that the gradient was computed from.
        num_tokens: the weight that the sum of gradients is divided by (target tokens); 0 if the gradient was rejected.
        loss_sum: loss summed over these tokens, in nats; or UNKNOWN_LOSS.
        num_source_tokens: source tokens, for the log.
        compute_seconds: time of the forward and backward passes.
        tickets: the batches that the gradient covers.
    """

    version: int
    num_tokens: int
    loss_sum: float
    num_source_tokens: int
    compute_seconds: float
    tickets: tuple[int, ...]
