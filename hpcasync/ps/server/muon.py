"""Muon: steps of whole matrices, along momentum whose singular values are all made one."""

from collections.abc import Callable
from typing import Any

import torch

from hpcasync.ps.server.adam import Eager

# Of the quintic iteration that brings singular values from (0, 1] to about 0.7 to 1.2: Jordan et al. 2024.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
# Elements of a step then have the root mean square that those of Adam's have: rates and weight decays of AdamW suit.
_ADAMS_SIZE = 0.2
# So many of their operations take as long as Adam's step of an element: 67 to 88 by a core of a CPU, in float32.
_OPERATIONS_OF_ADAM = 80


class Muon(Eager):
    """The optimizer of one matrix, which it is given as a vector; what follows it in the vector stays as it is.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the size of a step and the
    decoupled weight decay: Liu et al. 2025 (arXiv 2502.16982), section 2.2.

    Args:
        params: one vector.
        shape: of the matrix.
        nesterov: step along the momentum as the gradient will have moved it once more.

    Attributes:
        along: what steps go along, where it is computed elsewhere (`ps.server.dealt_muon`); None: each computes it.
    """

    def __init__(
        self,
        params: list[torch.nn.Parameter],
        shape: tuple[int, int],
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
    ) -> None:
        self.shape = shape
        self.along: torch.Tensor | None = None
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        [group] = self.param_groups
        [block] = group["params"]
        momentum = self._momentum(block).mul_(group["momentum"]).add_(block.grad)
        along = self._along(momentum, block.grad) if self.along is None else self.along
        matrix = self._matrix(block)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.sub_(along, alpha=group["lr"] * _ADAMS_SIZE * max(self.shape) ** 0.5)

    @torch.no_grad()
    def compute_along(self, gradient: torch.Tensor) -> torch.Tensor:
        """What a step with this gradient goes along; no step is made."""
        [group] = self.param_groups
        [block] = group["params"]
        return self._along(self._momentum(block).mul(group["momentum"]).add_(gradient), gradient)

    def _along(self, momentum: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        [group] = self.param_groups
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        return orthogonal(self._matrix(direction))

    def _matrix(self, vector: torch.Tensor) -> torch.Tensor:
        return vector[: self.shape[0] * self.shape[1]].view(self.shape)

    def _momentum(self, block: torch.nn.Parameter) -> torch.Tensor:
        state = self.state[block]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(block)
        momentum: torch.Tensor = state["momentum"]
        return momentum


def cost_of_element(shape: tuple[int, int]) -> float:
    """What the step of a matrix costs by the element, where one of Adam's costs 1."""
    short, long = sorted(shape)
    operations = _NUM_ITERATIONS * (4 * short + 2 * short**2 / long)
    return 1 + operations / _OPERATIONS_OF_ADAM


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with its singular vectors, and singular values near one (0.6 to 1.3)."""
    first, second, third = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    given = matrix.T if is_tall else matrix
    wide: torch.Tensor = given / given.norm().clamp(min=1e-30)
    for _ in range(_NUM_ITERATIONS):
        square = wide @ wide.T
        wide = first * wide + torch.addmm(second * square, square, square, alpha=third) @ wide
    return wide.T if is_tall else wide
