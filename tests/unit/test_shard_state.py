"""A shard's step against plain torch on the whole vector: optimizer, average, clipping, blocks, saved state."""

import pytest
import torch

from hpcasync.comm.shards import Shard, cut_shards
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.server import shard_state
from hpcasync.ps.server.apply_group import clip_factor
from hpcasync.ps.server.shard_state import ShardState, blocks_of, squared_norm
from hpcasync.train.loop.optimizers import optimizer_factory

NUM_ELEMENTS = 100
CLIP_NORM = 0.7
EMA_DECAY = 0.9
ADAM = OptimizerConfig(name="adam", nesterov=False, learning_rate=1.0)
ADAMW = OptimizerConfig(name="adamw", nesterov=False, learning_rate=1.0, weight_decay=0.1)


def gradients(num_updates: int) -> list[tuple[torch.Tensor, int]]:
    """Summed gradients and their token counts; some are clipped, some are not."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(NUM_ELEMENTS, generator=generator) * (1 + 3 * (index % 2)), 10 + index)
        for index in range(num_updates)
    ]


def initial() -> torch.Tensor:
    return torch.randn(NUM_ELEMENTS, generator=torch.Generator().manual_seed(2))


def plain_torch(config: OptimizerConfig, num_updates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same updates by torch alone: mean gradient, clip_grad_norm_, Adam or AdamW, exponential moving average."""
    parameter = torch.nn.Parameter(initial())
    average = parameter.detach().clone()
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    optimizer = kind([parameter], betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)
    for version, (gradient, num_tokens) in enumerate(gradients(num_updates), start=1):
        parameter.grad = gradient / num_tokens
        torch.nn.utils.clip_grad_norm_([parameter], CLIP_NORM)
        optimizer.param_groups[0]["lr"] = 0.01 * version
        optimizer.step()
        decay = min(EMA_DECAY, (1 + version) / (10 + version))
        average = decay * average + (1 - decay) * parameter.detach()
    return parameter.detach(), average


def make(config: OptimizerConfig, shard: Shard, *, fused: bool = True) -> ShardState:
    parameters = initial()[shard.start : shard.stop].clone()
    return ShardState(parameters, optimizer_factory(config), ema_decay=EMA_DECAY, fused=fused)


def update_all(states: list[ShardState], shards: list[Shard], first: int, last: int) -> None:
    """Updates first + 1 to last on all shards, clipped by the norm over all of them."""
    for version, (gradient, num_tokens) in enumerate(gradients(last), start=1):
        if version <= first:
            continue
        parts = [gradient[shard.start : shard.stop].clone() for shard in shards]
        squared = sum(map(squared_norm, parts))
        scale = 1 / num_tokens
        scale *= clip_factor(scale * squared**0.5, CLIP_NORM)
        for state, part in zip(states, parts, strict=True):
            published = torch.full_like(part, float("nan"))
            state.apply(blocks_of(part), scale=scale, learning_rate=0.01 * version, version=version, publish=published)
            assert torch.equal(published, state.parameters)


def whole(states: list[ShardState]) -> tuple[torch.Tensor, torch.Tensor]:
    averages = [state.ema for state in states if state.ema is not None]
    return torch.cat([state.parameters for state in states]), torch.cat(averages)


def test_a_gpu_steps_a_shard_in_one_block() -> None:
    """Which the test below does too, with blocks that are larger than the vector."""
    many = 5 * shard_state.BLOCK_ELEMENTS
    assert shard_state.block_elements(torch.empty(many, device="meta")) == many
    assert shard_state.block_elements(torch.empty(many)) == shard_state.BLOCK_ELEMENTS


@pytest.mark.parametrize("config", [ADAM, ADAMW], ids=lambda config: config.name)
@pytest.mark.parametrize("num_servers", [1, 3])
@pytest.mark.parametrize("block_elements", [7, 16, 1 << 18])
@pytest.mark.parametrize("fused", [False, True])
def test_shards_and_blocks_make_the_step_of_plain_torch(
    config: OptimizerConfig, num_servers: int, block_elements: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_state, "BLOCK_ELEMENTS", block_elements)
    shards = cut_shards(NUM_ELEMENTS, num_servers)
    states = [make(config, shard, fused=fused) for shard in shards]
    update_all(states, shards, 0, 5)
    parameters, average = whole(states)
    expected, expected_average = plain_torch(config, 5)
    torch.testing.assert_close(parameters, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(average, expected_average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block_elements", [7, 1 << 18])
@pytest.mark.parametrize(("num_before", "num_after"), [(1, 1), (1, 3), (3, 2)])
def test_state_goes_on_in_other_shards(
    block_elements: int, num_before: int, num_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_state, "BLOCK_ELEMENTS", block_elements)
    before = cut_shards(NUM_ELEMENTS, num_before)
    states = [make(ADAM, shard) for shard in before]
    update_all(states, before, 0, 3)
    saved = [state.state_tensors() for state in states]
    update_all(states, before, 3, 4)  # what was saved is a copy
    assert set(saved[0]) == {"parameters", "ema", "optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq"}
    assert all(tensors["optimizer.step"].item() == 3 for tensors in saved)

    vectors = {key: torch.cat([tensors[key] for tensors in saved]) for key in saved[0] if key != "optimizer.step"}
    monkeypatch.setattr(shard_state, "BLOCK_ELEMENTS", 11)
    after = cut_shards(NUM_ELEMENTS, num_after)
    resumed = [ShardState(torch.zeros(s.size), optimizer_factory(ADAM), ema_decay=EMA_DECAY) for s in after]
    for state, shard in zip(resumed, after, strict=True):
        part = {key: vector[shard.start : shard.stop] for key, vector in vectors.items()}
        state.load_state_tensors({**part, "optimizer.step": saved[0]["optimizer.step"]})
    update_all(resumed, after, 3, 5)
    for actual, expected in zip(whole(resumed), plain_torch(ADAM, 5), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_state_before_the_first_update_and_without_an_average() -> None:
    state = ShardState(initial(), optimizer_factory(ADAM))
    saved = state.state_tensors()
    assert set(saved) == {"parameters"}
    resumed = make(ADAM, Shard(0, NUM_ELEMENTS))
    resumed.parameters.zero_()
    resumed.load_state_tensors(saved)
    assert torch.equal(resumed.parameters, initial())
    assert resumed.ema is not None and torch.equal(resumed.ema, initial()), "the average starts at the parameters"
    update_all([resumed], [resumed.whole], 0, 2)
    torch.testing.assert_close(resumed.parameters, plain_torch(ADAM, 2)[0], rtol=1e-5, atol=1e-6)


def test_gaps_of_the_flat_vector_stay_zero() -> None:
    state = ShardState(torch.zeros(32), optimizer_factory(ADAMW))
    gradient = torch.zeros(32)
    gradient[:20] = 1.0
    state.apply(blocks_of(gradient), scale=1.0, learning_rate=0.1, version=1)
    assert not state.parameters[20:].any() and state.parameters[:20].all()


def test_between_blocks_is_called_for_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_state, "BLOCK_ELEMENTS", 30)
    calls: list[int] = []
    state = ShardState(initial(), optimizer_factory(ADAM), between_blocks=lambda: calls.append(1))
    state.apply(blocks_of(initial()), scale=1.0, learning_rate=0.1, version=1)
    assert len(calls) == 4


def test_what_is_published_is_ahead_along_the_step() -> None:
    state, unmoved = (ShardState(initial(), optimizer_factory(ADAM)) for _ in range(2))
    for version, (gradient, _) in enumerate(gradients(3), start=1):
        before, published = state.parameters.clone(), torch.empty(NUM_ELEMENTS)
        for each, steps in ((state, 0.75), (unmoved, 0.0)):
            each.apply(
                blocks_of(gradient.clone()),
                scale=1.0,
                learning_rate=0.01,
                version=version,
                publish=published if steps else None,
                lookahead=steps,
            )
        torch.testing.assert_close(published, state.parameters + 0.75 * (state.parameters - before))
        assert torch.equal(state.parameters, unmoved.parameters), "the servers' own parameters are where they were"


def test_squared_norm_of_a_long_vector_keeps_its_digits() -> None:
    vector = torch.full((3_000_001,), 0.1)
    assert squared_norm(vector) == pytest.approx(30000.01, rel=1e-4)


def test_clip_factor() -> None:
    assert clip_factor(0.5, 1.0) == 1.0
    assert clip_factor(4.0, 1.0) == pytest.approx(0.25, rel=1e-6)
    gradient = torch.tensor([3.0, 4.0])
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([parameter], 2.0)
    torch.testing.assert_close(parameter.grad, gradient * clip_factor(5.0, 2.0))
