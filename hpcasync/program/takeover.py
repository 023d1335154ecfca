"""The program's optimizer and module as it left them, but for what a job does in their place."""

from collections.abc import Callable
from typing import Any

import torch


def take_over(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[], None], zero_grad: Callable[[], None]
) -> None:
    """Have `optimizer.step()` do `step`, and both `zero_grad()` do `zero_grad`: gradients stay in their vector."""

    def joined_step(closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        setattr(optimizer, "_opt_called", True)  # noqa: B010 - schedulers of torch look for it
        step()
        return loss

    def joined_zero_grad(set_to_none: bool = True) -> None:
        zero_grad()

    joined_step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = joined_step  # type: ignore[method-assign]
    optimizer.zero_grad = joined_zero_grad  # type: ignore[method-assign]
    model.zero_grad = joined_zero_grad  # type: ignore[method-assign]
