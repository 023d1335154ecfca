"""Muon: steps of whole matrices, along momentum whose singular values are all made one."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from hpcasync.onednn import has_onednn, onednn_linear
from hpcasync.ps.server.adam import Eager

# a, b, c of a s + b s^3 + c s^5, one after the other: singular values in [0.005, 1] come closest to one (0.5 to 1.5),
# smaller ones grow 103 times. Each is the best one for the interval that the one before has left: Amsel et al. 2025
# (arXiv 2505.16932).
_POLYNOMIALS = ((8.2987, -24.4305, 18.0903), (3.9152, -2.9211, 0.5592), (3.1746, -2.3804, 0.4978))
# Elements of a step then have the root mean square that those of Adam's have: rates and weight decays of AdamW suit.
ADAMS_SIZE = 0.2
# So many of their operations take as long as Adam's step of an element: 35 to 115 by a core of a CPU, in float32.
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
        STATE: names of the vectors that it keeps.
        along: what steps go along, where it is computed elsewhere (`ps.server.dealt_muon`); None: each computes it.
    """

    STATE = frozenset({"momentum"})

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
        momentum = self.momentum(block).mul_(group["momentum"]).add_(block.grad)
        along = self._along(momentum, block.grad) if self.along is None else self.along
        matrix = self._matrix(block)
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.sub_(along, alpha=group["lr"] * ADAMS_SIZE * max(self.shape) ** 0.5)

    @torch.no_grad()
    def compute_along(self, gradient: torch.Tensor) -> torch.Tensor:
        """What a step with this gradient goes along; no step is made."""
        [group] = self.param_groups
        [block] = group["params"]
        return self._along(self.momentum(block).mul(group["momentum"]).add_(gradient), gradient)

    def _along(self, momentum: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        [group] = self.param_groups
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        return orthogonal(self._matrix(direction))

    def _matrix(self, vector: torch.Tensor) -> torch.Tensor:
        return vector[: self.shape[0] * self.shape[1]].view(self.shape)

    def momentum(self, block: torch.nn.Parameter) -> torch.Tensor:
        """As long as the block; zero before the first step."""
        state = self.state[block]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(block)
        momentum: torch.Tensor = state["momentum"]
        return momentum


def num_operations(shape: tuple[int, int]) -> int:
    """Additions and multiplications of `orthogonal`."""
    short, long = sorted(shape)
    # Of the smaller matrices two make a polynomial of what they are in, three lead from one polynomial to the next.
    num_square = len(_POLYNOMIALS) + 3 * (len(_POLYNOMIALS) - 1)
    return 2 * short**2 * (2 * long + num_square * short)


def cost_of_element(shape: tuple[int, int]) -> float:
    """What the step of a matrix costs by the element, where one of Adam's costs 1."""
    return 1 + num_operations(shape) / (shape[0] * shape[1] * _OPERATIONS_OF_ADAM)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with its singular vectors, and singular values near one.

    A polynomial that is odd in a matrix X is one in X X^T, times X. So all of them are composed in the smaller of
    X X^T and X^T X, in which everything commutes, and X is multiplied twice: for that square, and at the end.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = (matrix.T if is_tall else matrix).contiguous()
    tall = (matrix if is_tall else matrix.T).contiguous()
    square = _product(wide, wide)
    # The root of this norm is no less than the largest singular value, and closer to it than the norm of the matrix.
    bound = square.norm().clamp(min=1e-30)
    square /= bound
    composed = polynomial = _polynomial(square, *_POLYNOMIALS[0])
    for coefficients in _POLYNOMIALS[1:]:
        square = _product(_product(square, polynomial), polynomial)
        polynomial = _polynomial(square, *coefficients)
        composed = _product(composed, polynomial)
    composed /= bound.sqrt()
    return _product(tall, composed) if is_tall else _product(composed, tall)


def orthogonal_stack(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As `orthogonal`, of [number, rows, columns], in a type with few digits.

    A polynomial after the other is multiplied to the matrices: in their square what is small would be lost to rounding.
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices
    wide = (wide / wide.flatten(1).norm(dim=1).clamp(min=1e-30)[:, None, None]).to(dtype)
    square = wide @ wide.mT
    bound = square.flatten(1).float().norm(dim=1).clamp(min=1e-30)[:, None, None]
    wide, square = (wide / bound.sqrt()).to(dtype), (square / bound).to(dtype)
    for number, (first, second, third) in enumerate(_POLYNOMIALS):
        if number:
            square = wide @ wide.mT
        polynomial = torch.baddbmm(square, square, square, beta=second, alpha=third)
        wide = torch.baddbmm(wide, polynomial, wide, beta=first)
    return wide.mT if is_tall else wide


def _polynomial(square: torch.Tensor, first: float, second: float, third: float) -> torch.Tensor:
    """Of an even polynomial's coefficients, in what was squared."""
    result = _product(square, square).mul_(third).add_(square, alpha=second)
    result.diagonal().add_(first)
    return result


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right.T, of contiguous matrices."""
    if left.is_cpu and has_onednn():
        return onednn_linear(left, right, None)
    return functional.linear(left, right)
