"""Delay compensation: what a stale gradient would be at the parameters of today, to first order."""

import torch

from hpcasync.ps.server.shard_state import BLOCK_ELEMENTS


class DelayCompensation:
    """Adds strength * g * g * (w_now - w_then) to each gradient g that was computed from w_then.

    Source: Zheng et al. 2017, "Asynchronous Stochastic Gradient Descent with Delay Compensation" (ICML), equation 10,
    with a constant lambda. Costs a server `limit` + 1 further copies of its shard: the versions that a gradient which
    is still accepted can come from.

    Args:
        limit: most staleness, in updates.
        parameters: [size] float32 of the first version.

    Attributes:
        versions: [limit + 1, size] float32, version v in row v mod (limit + 1).
    """

    def __init__(self, strength: float, limit: int, parameters: torch.Tensor, version: int) -> None:
        self._strength = strength
        self.versions = torch.empty(limit + 1, parameters.numel(), dtype=torch.float32, device=parameters.device)
        self.remember(version, parameters)

    @staticmethod
    def num_copies(limit: int) -> int:
        return limit + 1

    def remember(self, version: int, parameters: torch.Tensor) -> None:
        """Keep [size] parameters that have just been published, in place of the oldest."""
        self.versions[version % len(self.versions)].copy_(parameters)

    def correct(self, gradient: torch.Tensor, num_tokens: int, version: int, parameters: torch.Tensor) -> None:
        """Correct, in place, a [size] gradient that is the sum over `num_tokens` at `version`."""
        then = self.versions[version % len(self.versions)]
        for start in range(0, gradient.numel(), BLOCK_ELEMENTS):
            stop = min(start + BLOCK_ELEMENTS, gradient.numel())
            block = gradient[start:stop]
            moved = parameters[start:stop] - then[start:stop]
            # The source's gradient is the mean g / n, which it corrects before it is multiplied by n again.
            block.addcmul_(block * block, moved, value=self._strength / num_tokens)
