"""What travels with a gradient: its weight, the version it was computed from, and the batches it covers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PushRecord:
    """The record of one push.

    Attributes:
        version: version of the parameters that the gradient was computed from.
        num_tokens: the weight that the sum of gradients is divided by (target tokens).
        loss_sum: loss summed over these tokens, in nats.
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
