"""Updates of a block by a kernel, by torch's operations and by their formula."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st

from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.server import fused_apply
from hpcasync.ps.server.block_update import BlockUpdate
from hpcasync.train.loop.optimizers import optimizer_factory

BETAS, EPS, RATE = (0.8, 0.95), 1e-4, 0.01
# Around the length of the kernel's tile, and of vectors of any width.
SIZES = st.integers(1, 40) | st.sampled_from([127, 128, 129, 255, 256, 257, 300])


class Case:
    """Three updates of a block, with all that goes with them."""

    def __init__(self, size: int, num_parts: int, config: OptimizerConfig, weight: float, lookahead: float) -> None:
        generator = torch.Generator().manual_seed(size + 1000 * num_parts)
        self.config, self.weight, self.lookahead = config, weight, lookahead
        self.start = torch.randn(size, generator=generator)
        self.gradients = [[torch.randn(size, generator=generator) for _ in range(num_parts)] for _ in range(3)]

    def run(self, *, fused: bool, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """Parameters, average, published, both moments."""
        block = torch.nn.Parameter(self.start.clone())
        optimizer = optimizer_factory(self.config)([block])
        average, published = self.start.clone(), torch.empty(len(block), dtype=dtype)
        for parts in self.gradients:
            scratch = torch.full_like(block.detach(), float("nan"))
            update = BlockUpdate(parts, 0.3, scratch, average, self.weight, published, self.lookahead)
            assert fused_apply.can_make(update, optimizer, block)
            fused_apply.make(update, optimizer, block) if fused else update.make(optimizer, block)
        state = optimizer.state[block]
        assert state["step"] == 3
        return [block.detach(), average, published, state["exp_avg"], state["exp_avg_sq"]]

    def by_formula(self) -> list[torch.Tensor]:
        """The same in float64."""
        (b1, b2), decay = BETAS, self.config.weight_decay
        w = self.start.double()
        average, before, m, v = w, w, torch.zeros_like(w), torch.zeros_like(w)
        for step, parts in enumerate(self.gradients, start=1):
            before, g = w, 0.3 * torch.stack(parts).double().sum(0)
            g = g + decay * w if self.config.name == "adam" else g
            w = w - RATE * decay * w if self.config.name == "adamw" else w
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            mean = m / (1 - b1**step)
            numerator = b1 * mean + (1 - b1) * g if self.config.nesterov else mean
            w = w - RATE * numerator / ((v / (1 - b2**step)).sqrt() + EPS)
            average = average + self.weight * (w - average)
        return [w, average, w + self.lookahead * (w - before), m, v]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    config = OptimizerConfig.model_validate(
        {
            "name": draw(st.sampled_from(["adam", "adamw"])),
            "nesterov": draw(st.booleans()),
            "weight_decay": draw(st.sampled_from([0.0, 0.1])),
            "learning_rate": RATE,
            "betas": BETAS,
            "eps": EPS,
        }
    )
    weight, lookahead = draw(st.sampled_from([0.1, 0.8])), draw(st.sampled_from([0.0, 0.75, 1.5]))
    return Case(draw(SIZES), draw(st.integers(1, 7)), config, weight, lookahead)


def check_sums(sum_of_squares: Callable[..., float], size: int, num_parts: int) -> None:
    """Vectors are added in their order, into one of them if that is asked for; squares are summed in float64."""
    parts = list(torch.randn(num_parts, size, generator=torch.Generator().manual_seed(size)))
    expected = parts[0]
    for part in parts[1:]:
        expected = expected + part
    squares = float(expected.double().square().sum())
    assert sum_of_squares(parts) == pytest.approx(squares, rel=1e-12)
    assert sum_of_squares(parts, parts[0]) == pytest.approx(squares, rel=1e-12)
    assert torch.equal(parts[0], expected), "in the order of the parts, into one of them"
