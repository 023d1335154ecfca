"""What one update does to a block of a shard; and how torch does it, one operation after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BlockUpdate:
    """An optimizer step of a block, and what follows from it.

    Attributes:
        parts: vectors whose sum is the gradient; not to be changed.
        scale: factor on the gradient.
        scratch: [block] float32, to be overwritten at will.
        average: [block] averaged parameters, which move by `average_weight` of the way to the new ones; or None.
        average_weight: from 0 to 1.
        published: [block] of any type and device, where the new parameters are copied to; or None.
        lookahead: what is published lies so many steps like this one further on.
    """

    parts: Sequence[torch.Tensor]
    scale: float
    scratch: torch.Tensor
    average: torch.Tensor | None = None
    average_weight: float = 0.0
    published: torch.Tensor | None = None
    lookahead: float = 0.0

    def make(self, optimizer: torch.optim.Optimizer, block: torch.nn.Parameter) -> None:
        """Step the optimizer of this block; then average and publish."""
        values = block.detach()
        # Added up first, then scaled: the same bits, however many of the parts have been added up before.
        gradient, *others = self.parts
        for part in others:
            gradient = torch.add(gradient, part, out=self.scratch)
        gradient = torch.mul(gradient, self.scale, out=self.scratch)
        begun = self._begin_publishing(values) if self.lookahead else None
        block.grad = gradient
        optimizer.step()
        block.grad = None
        if self.average is not None:
            self.average.lerp_(values, self.average_weight)
        if self.published is not None:
            publish(self.published, values if begun is None else begun.lerp_(values, 1 + self.lookahead))

    def _begin_publishing(self, before: torch.Tensor) -> torch.Tensor | None:
        """The parameters before the step, where they can be moved on after it: in place, if they fit there."""
        target = self.published
        if target is None:
            return None
        is_alike = target.dtype == before.dtype and target.device == before.device
        return target.copy_(before) if is_alike else before.clone()


def publish(target: torch.Tensor, values: torch.Tensor) -> None:
    """Copy parameters to where workers read them; on a GPU they are rounded before they leave it."""
    target.copy_(values if values.device.type == "cpu" else values.to(target.dtype))
