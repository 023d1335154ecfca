"""What becomes of a group's gradients: summed, corrected, scaled, clipped, stepped by.

Once, for a server, a simulated server and the workers of synchronous training.
"""

from collections.abc import Callable

import torch

from hpcasync.ps.protocol.orders import Order
from hpcasync.ps.server.compensation import DelayCompensation
from hpcasync.ps.server.group_sum import GroupSum
from hpcasync.ps.server.shard_state import GradientBlocks, ShardState
from hpcasync.ps.transport.gradient_formats import Wire


class ShardGroup:
    """The gradients of a group on one shard, until an update is made of them.

    Args:
        wire: how gradients lie in slots.
        compensation: corrects each for the versions between; None: they are summed as they are.
    """

    def __init__(self, state: ShardState, wire: Wire, compensation: DelayCompensation | None) -> None:
        self._state = state
        self._wire = wire
        self._compensation = compensation
        self._sum = GroupSum(state.whole.size, wire, state.parameters.device, state.threads)
        self.fold = self._sum.fold
        self.clear = self._sum.clear
        self.add = self._sum.add
        self.squared_norm = self._sum.squared_norm

    def take(self, slot: torch.Tensor, num_tokens: int, version: int) -> None:
        """Add the gradient in a slot (uint8), which must stay as it is until `fold`, `clear` or `apply`."""
        if self._compensation is None:
            self._sum.add_slot(slot)
            return
        # Corrected at once: for the versions that there are now.
        gradient = torch.empty_like(self._state.parameters)
        self._wire.copy(gradient, slot)
        self._compensation.correct(gradient, num_tokens, version, self._state.parameters)
        self._sum.add(gradient)

    def apply(
        self,
        order: Order,
        clip_norm: float,
        squared_norm: Callable[[], float],
        begin: Callable[[], torch.Tensor | None],
    ) -> None:
        """Make an update of the sum (see `apply_group`), and begin a new group."""
        apply_group(self._state, self._sum.block, order, clip_norm, squared_norm, begin)
        self.clear()
        if self._compensation is not None:
            self._compensation.remember(order.version, self._state.parameters)


def apply_group(
    state: ShardState,
    gradient: GradientBlocks,
    order: Order,
    clip_norm: float,
    squared_norm: Callable[[], float],
    begin: Callable[[], torch.Tensor | None] = lambda: None,
) -> None:
    """Make an update of a summed gradient.

    Args:
        clip_norm: greatest norm of the gradient per token; 0: no clipping.
        squared_norm: gives the sum of squares of the whole gradient; asked only where it matters.
        begin: called before the first element changes; returns where the new parameters are copied to.
    """
    scale = 1.0 / max(1, order.num_tokens)
    if clip_norm:
        scale *= clip_factor(scale * squared_norm() ** 0.5, clip_norm)
    state.apply(
        gradient,
        scale=scale,
        learning_rate=order.learning_rate,
        version=order.version,
        publish=begin(),
        lookahead=order.lookahead,
    )


def clip_factor(norm: float, clip_norm: float) -> float:
    """Factor that brings a gradient of global norm `norm` down to `clip_norm`, as torch.nn.utils.clip_grad_norm_."""
    return min(1.0, clip_norm / (norm + 1e-6))
