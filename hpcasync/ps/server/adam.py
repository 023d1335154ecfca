"""Adam and AdamW, also with Nesterov's numerator, that do not load torch's compiler."""

import inspect
from collections.abc import Callable
from typing import Any

import torch


class Eager(torch.optim.Optimizer):
    """An optimizer that is not to be compiled."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch does it, but for exempting this from compilation, which takes 75 MB of every rank."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)


class EagerAdam(Eager, torch.optim.Adam):
    """torch's Adam."""


class EagerAdamW(EagerAdam, torch.optim.AdamW):
    """torch's AdamW."""


class _NesterovNumerator(EagerAdam):
    """Adam that steps along b1 * m_hat + (1 - b1) * g where Adam steps along m_hat; its state is Adam's.

    The gradient counts as much as it will in the mean one step later: momentum turns sooner. Source: Dozat 2016,
    "Incorporating Nesterov Momentum into Adam", without his schedule of b1, and with Adam's own bias correction;
    Ajanthan et al. 2025 (arXiv 2505.01099) for delayed gradients.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Adam's step, then the rest: lr * (1 - b1) * (g - m_hat) / (sqrt(v_hat) + eps)."""
        assert closure is None
        stepped = [(group, block, _decayed(block, group)) for group in self.param_groups for block in group["params"]]
        super().step()
        for group, block, gradient in stepped:
            (first, second), state = group["betas"], self.state[block]
            num_steps = float(state["step"])
            mean = state["exp_avg"] / (1 - first**num_steps)
            root = (state["exp_avg_sq"] / (1 - second**num_steps)).sqrt_()
            block.addcdiv_(gradient - mean, root.add_(group["eps"]), value=-group["lr"] * (1 - first))


class NesterovAdam(_NesterovNumerator):
    """With Adam's weight decay, which is part of the gradient."""


class NesterovAdamW(_NesterovNumerator, torch.optim.AdamW):
    """With decoupled weight decay."""


def _decayed(block: torch.nn.Parameter, group: dict[str, Any]) -> torch.Tensor:
    """The gradient as Adam sees it, of the parameters before the step."""
    assert block.grad is not None
    is_coupled = group["weight_decay"] and not group["decoupled_weight_decay"]
    return block.grad.add(block, alpha=group["weight_decay"]) if is_coupled else block.grad
