"""The program's optimizer and module as it left them, but for what a job does in their place."""

from collections.abc import Callable
from typing import Any

import torch

from hpcasync.errors import UserError


def take_over(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[], None],
    zero_grad: Callable[[], None],
    *,
    may_scale: bool,
) -> None:
    """Have `optimizer.step()` do `step`, and both `zero_grad()` do `zero_grad`: gradients stay in their vector.

    With `may_scale` torch's GradScaler takes its scale out of gradients before the step; otherwise it is refused.
    """

    def joined_step(closure: Callable[[], Any] | None = None) -> Any:
        if getattr(optimizer, "found_inf", None) is not None:
            raise UserError(
                "a GradScaler, which changes the gradient after backward(): with sums_during_backward it is on its way "
                "then; take bfloat16, which needs no scale, or leave sums_during_backward out"
            )
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
    # Fused optimizers would have the scale given to their step, which servers make.
    setattr(optimizer, "_step_supports_amp_scaling", not may_scale)  # noqa: B010
    optimizer.step = joined_step  # type: ignore[method-assign]
    optimizer.zero_grad = joined_zero_grad  # type: ignore[method-assign]
    model.zero_grad = joined_zero_grad  # type: ignore[method-assign]
