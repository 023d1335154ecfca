"""Nesterov's numerator against its formula, written out in float64."""

import pytest
import torch

from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.server.shard_state import ShardState, blocks_of
from hpcasync.train.loop.optimizers import optimizer_factory

NUM_ELEMENTS = 50
BETAS = (0.8, 0.95)
RATES = [0.01, 0.03, 0.02, 0.01, 0.005]


def config(name: str, decay: float, *, nesterov: bool = True) -> OptimizerConfig:
    return OptimizerConfig.model_validate(
        {"name": name, "nesterov": nesterov, "betas": BETAS, "eps": 1e-3, "weight_decay": decay}
    )


def gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(NUM_ELEMENTS, generator=generator) for _ in RATES]


def by_formula(name: str, decay: float, factor: float) -> torch.Tensor:
    """Adam with m_hat replaced by factor * m_hat + (1 - factor) * g."""
    first, second = BETAS
    w = torch.linspace(-1, 1, NUM_ELEMENTS).double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step, (rate, gradient) in enumerate(zip(RATES, gradients(), strict=True), start=1):
        g = gradient.double()
        if name == "adam":
            g = g + decay * w
        else:
            w = w - rate * decay * w
        m = first * m + (1 - first) * g
        v = second * v + (1 - second) * g * g
        m_hat, v_hat = m / (1 - first**step), v / (1 - second**step)
        w = w - rate * (factor * m_hat + (1 - factor) * g) / (v_hat.sqrt() + 1e-3)
    return w


def trained(settings: OptimizerConfig, *, fused: bool) -> torch.Tensor:
    state = ShardState(torch.linspace(-1, 1, NUM_ELEMENTS), optimizer_factory(settings), fused=fused)
    for version, (rate, gradient) in enumerate(zip(RATES, gradients(), strict=True), start=1):
        state.apply(blocks_of(gradient), scale=1.0, learning_rate=rate, version=version)
    return state.parameters


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_numerator_is_that_of_the_formula(name: str, decay: float, nesterov: bool, fused: bool) -> None:
    expected = by_formula(name, decay, BETAS[0] if nesterov else 1.0)
    actual = trained(config(name, decay, nesterov=nesterov), fused=fused)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_checkpoint_of_either_is_one_of_the_other(name: str) -> None:
    plain, nesterov = (
        ShardState(torch.ones(NUM_ELEMENTS), optimizer_factory(config(name, 0.0, nesterov=kind)))
        for kind in (False, True)
    )
    for state in (plain, nesterov):
        state.apply(blocks_of(gradients()[0]), scale=1.0, learning_rate=0.01, version=1)
    saved, other = plain.state_tensors(), nesterov.state_tensors()
    assert saved.keys() == other.keys()
    nesterov.load_state_tensors(saved)
    for key in saved.keys() - {"parameters"}:
        assert torch.equal(saved[key], other[key]), "moments do not depend on the numerator"
    assert all(torch.equal(value, nesterov.state_tensors()[key]) for key, value in saved.items())
