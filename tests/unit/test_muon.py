"""Muon: steps of the matrices in a flat vector."""

import math
from pathlib import Path

import pytest
import torch
from tiny_run import TinyRun
from torch.utils.flop_counter import FlopCounterMode

from hpcasync.comm.shards import Shard
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.config.schema import load_config
from hpcasync.config.validation import CheckpointConfig
from hpcasync.errors import UserError
from hpcasync.nmt.linear import Linear
from hpcasync.ps.server.block_update import BlockUpdate
from hpcasync.ps.server.dealt_muon import Dealing
from hpcasync.ps.server.muon import Muon, cost_of_element, num_operations, orthogonal, orthogonal_stack
from hpcasync.ps.server.parameter_groups import Block, Optimizers, ParameterGroup, cut_in_blocks, cut_in_shards
from hpcasync.ps.server.shard_state import ShardState, blocks_of
from hpcasync.ps.server.stacked_muon import StackedMuon
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.checkpoints import CheckpointDirectory, ShardWriter, read_shard
from hpcasync.train.loop.optimizers import make_optimizers, matrix_operations
from hpcasync.train.loop.task import make_task


class Model(torch.nn.Module):
    """A lookup table, which is no linear layer's weight, and two linear layers, one larger than a block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = torch.nn.Embedding(5, 7)
        self.first = Linear(7, 9)
        self.second = Linear(900, 700)


@pytest.mark.parametrize("shape", [(16, 16), (6, 40), (40, 6), (64, 192)])
@pytest.mark.parametrize("least", [1.0, 0.02, 1e-5])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, int], least: float) -> None:
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.logspace(0, math.log10(least), min(shape))
    rotated = left.T @ orthogonal(0.3 * left @ torch.diag(values) @ right) @ right.T
    became = rotated.diagonal()
    torch.testing.assert_close(rotated, torch.diag(became), atol=1e-2, rtol=0)
    bound = (values**4).sum() ** 0.25
    is_large = values / bound >= 0.005
    assert is_large.any() and float(became[is_large].min()) > 0.49 and float(became[is_large].max()) < 1.51
    small = (became / (values / bound))[~is_large & (values > 1e-3)]
    assert ((small > 90) & (small < 104)).all()


def test_a_matrix_of_zeros_stays() -> None:
    assert not orthogonal(torch.zeros(3, 4)).any()
    assert not orthogonal_stack(torch.zeros(2, 3, 4), torch.bfloat16).any()


@pytest.mark.parametrize("shape", [(16, 16), (6, 40), (40, 6)])
def test_a_stack_in_few_digits_becomes_what_its_matrices_would(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    values = torch.logspace(0, -2, min(shape))
    matrices = 1e-4 * left @ torch.diag(values) @ right
    expected = torch.stack([orthogonal(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonal_stack(matrices, torch.float32), expected, atol=2e-3, rtol=0)
    actual = orthogonal_stack(matrices, torch.bfloat16).float()
    assert float((actual - expected).norm() / expected.norm()) < 0.08


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_torch(nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the iterations, of which torch's are others."""
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", lambda matrix, *_: orthogonal(matrix))
    torch.manual_seed(1)
    start = torch.randn(12, 30)
    block = torch.nn.Parameter(torch.cat([start.flatten(), torch.ones(3)]))
    other = torch.nn.Parameter(start.clone())
    settings = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    ours = Muon([block], (12, 30), **settings)  # type: ignore[arg-type]
    theirs = torch.optim.Muon([other], **settings, adjust_lr_fn="match_rms_adamw")  # type: ignore[arg-type]
    for _ in range(4):
        gradient = torch.randn(12, 30)
        block.grad, other.grad = torch.cat([gradient.flatten(), torch.zeros(3)]), gradient.clone()
        ours.step()
        theirs.step()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(block[:360].view(12, 30), other)
    assert not torch.equal(other, start)
    assert block[360:].tolist() == [1.0] * 3, "what follows the matrix"


def test_the_weights_of_linear_layers_are_whole_and_all_else_is_adams() -> None:
    model = Model()
    flat = FlatParameters(model)
    groups = make_optimizers(OptimizerConfig(name="muon"), model, flat)
    assert isinstance(groups, list) and all(isinstance(group, ParameterGroup) for group in groups)
    names = ["table", "first", "first's bias", "second", "second's bias"]
    assert [group.is_whole for group in groups] == [False, True, False, True, False], names
    assert groups[-1].stop == flat.num_elements
    block = torch.nn.Parameter(torch.zeros(64))
    assert type(groups[0].make_optimizer([block])).__name__ == "NesterovAdamW"


def test_packed_weights_of_attention_are_a_matrix() -> None:
    model = torch.nn.MultiheadAttention(8, 2)
    groups = make_optimizers(OptimizerConfig(name="muon"), model, FlatParameters(model))
    assert isinstance(groups, list) and all(isinstance(group, ParameterGroup) for group in groups)
    assert [group.is_whole for group in groups] == [True, False, True, False], "in_proj_weight, then out_proj"
    packed = matrix_operations(OptimizerConfig(name="muon"), model)
    assert packed == num_operations((24, 8)) + num_operations((8, 8))
    apart = torch.nn.MultiheadAttention(8, 2, kdim=4)
    assert matrix_operations(OptimizerConfig(name="muon"), apart) == num_operations((8, 8)), "out_proj alone"


def test_operations_of_a_model_are_those_of_its_products() -> None:
    model = Model()
    with FlopCounterMode(display=False) as counter:
        for matrix in (model.first.weight, model.second.weight):
            orthogonal(matrix.detach().to("meta"))
    counted = counter.get_total_flops()
    assert matrix_operations(OptimizerConfig(name="muon"), model) == counted > 0
    assert matrix_operations(OptimizerConfig(name="adam"), model) == 0
    assert cost_of_element((700, 900)) > cost_of_element((9, 7)) > 1


def test_ranks_that_share_the_matrices_make_the_steps_of_one() -> None:
    """Two ranks in turn: each gives what it has computed, and takes the sum."""
    model = Model()
    flat = FlatParameters(model)
    optimizers = make_optimizers(OptimizerConfig(name="muon", weight_decay=0.01), model, flat)
    gradients = [torch.randn(flat.num_elements) for _ in range(3)]
    alone, *ranks = (ShardState(flat.parameters.detach().clone(), optimizers) for _ in range(3))
    step(alone, gradients)
    given: list[torch.Tensor] = []

    def give(vector: torch.Tensor) -> None:
        given.append(vector.clone())

    def take(vector: torch.Tensor) -> None:
        given.append(vector.clone())
        vector.add_(given[-2])

    ranks[0].deal(Dealing(0, 2, give))
    ranks[1].deal(Dealing(1, 2, take))
    for version, gradient in enumerate(gradients, start=1):
        for rank in ranks:
            rank.apply(blocks_of(gradient), scale=1.0, learning_rate=0.01, version=version)
        ranks[0].load_state_tensors(ranks[1].state_tensors())
        assert given[-1].any() and given[-2].any() and not (given[-1] * given[-2]).any()
    assert torch.equal(ranks[1].parameters, alone.parameters)


def stacked_model() -> tuple[FlatParameters, Optimizers]:
    """Matrices of three shapes, of which two are in one stack, and one follows no other of its shape."""
    model = torch.nn.Sequential(
        *(Linear(*sizes) for sizes in ((8, 24), (24, 8), (8, 24), (7, 9))), torch.nn.LayerNorm(8)
    )
    flat = FlatParameters(model)
    return flat, make_optimizers(OptimizerConfig(name="muon", weight_decay=0.1), model, flat)


def stacked(state: ShardState, dtype: torch.dtype) -> StackedMuon:
    return StackedMuon({state._bounds[number].start: each for number, each in state._matrices.items()}, dtype=dtype)


@pytest.mark.parametrize("lookahead", [0.0, 1.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 8e-2)])
def test_stacked_matrices_make_the_steps_of_single_ones(
    dtype: torch.dtype, tolerance: float, lookahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcasync.ps.server.stacked_muon._MOST_ELEMENTS", 300)
    torch.manual_seed(1)
    flat, optimizers = stacked_model()
    states = [ShardState(flat.parameters.detach().clone(), optimizers, ema_decay=0.9) for _ in range(2)]
    published = [torch.full((flat.num_elements,), math.nan) for _ in range(2)]
    is_parameter = torch.zeros(flat.num_elements)
    for view in flat.views(is_parameter):
        view.fill_(1)
    assert not is_parameter.all(), "a matrix is followed by what fills the vector up"
    for version in range(1, 5):
        if version == 3:  # it goes on from what was saved
            states[1].load_state_tensors(states[1].state_tensors())
        if states[1]._stacked is None:
            states[1]._stacked = stacked(states[1], dtype)
            states[1]._singly = [n for n in states[1]._singly if n not in states[1]._matrices]
        parts = torch.randn(3, flat.num_elements) * is_parameter
        for state, target in zip(states, published, strict=True):
            state.apply(
                lambda start, stop: list(parts[:, start:stop]),  # noqa: B023
                scale=0.1, learning_rate=0.01, version=version, publish=target, lookahead=lookahead,
            )  # fmt: skip
    start = flat.parameters.detach()
    single, at_once = (state.state_tensors() for state in states)
    single, at_once = ({**each, "published": target} for each, target in zip((single, at_once), published, strict=True))
    assert set(single) == set(at_once)
    for name in ("optimizer.momentum", "optimizer.exp_avg"):
        torch.testing.assert_close(at_once[name], single[name])
    for name in ("parameters", "ema", "published"):
        moved = single[name] - start
        assert float((at_once[name] - single[name]).norm() / moved.norm()) < tolerance, name
        assert moved.norm() > 0


def test_ranks_that_share_stacks_make_the_steps_of_one() -> None:
    flat, optimizers = stacked_model()
    gradients = torch.randn(flat.num_elements)
    given: list[torch.Tensor] = []

    def take(vector: torch.Tensor) -> None:
        given.append(vector.clone())
        vector.copy_(sum(given, torch.zeros_like(vector)))

    made = []
    for dealing in (None, *(Dealing(rank, 3, take) for rank in range(3))):
        state = ShardState(flat.parameters.detach().clone(), optimizers)
        together = stacked(state, torch.bfloat16)
        if dealing is not None:
            together.deal(dealing)
        for optimizer in state._matrices.values():
            optimizer.param_groups[0]["lr"] = 0.01
        together.make(BlockUpdate([gradients], 1.0, scratch=torch.empty(flat.num_elements)))
        made.append(state.parameters)
    assert torch.equal(made[-1], made[0]) and not torch.equal(made[0], flat.parameters)
    assert all(each.any() for each in given)
    assert not (given[0] * given[1]).any(), "each has done its own"


@pytest.mark.parametrize(("start", "size"), [(0, 8), (4, 12), (4, 2)])
def test_what_is_stepped_as_a_whole_is_not_cut_by_shards(start: int, size: int) -> None:
    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters)

    groups = [ParameterGroup(2, make), ParameterGroup(10, make, is_whole=True), ParameterGroup(16, make)]
    assert cut_in_blocks(groups, 0, 16, 3) == [Block(0, 2, 0), Block(2, 10, 1), Block(10, 13, 2), Block(13, 16, 2)]
    assert cut_in_blocks(groups, 10, 6, 3) == [Block(0, 3, 2), Block(3, 6, 2)]
    with pytest.raises(AssertionError, match="lies in one shard"):
        cut_in_blocks(groups, start, size, 3)


def step(state: ShardState, gradients: list[torch.Tensor]) -> None:
    for version, gradient in enumerate(gradients):
        state.apply(blocks_of(gradient), scale=1.0, learning_rate=0.01, version=version + 1)


def trained(model: Model, flat: FlatParameters) -> tuple[Optimizers, torch.Tensor, list[torch.Tensor], ShardState]:
    """What steps a model, its first parameters, four gradients, and the state after these."""
    optimizers = make_optimizers(OptimizerConfig(name="muon", weight_decay=0.01), model, flat)
    start = flat.parameters.detach().clone()
    gradients = [torch.randn(flat.num_elements) for _ in range(4)]
    through = ShardState(start.clone(), optimizers)
    step(through, gradients)
    return optimizers, start, gradients, through


def test_a_state_goes_on_in_other_shards_bit_for_bit(tmp_path: Path) -> None:
    """Of the shards before one has matrices alone, and no moments of Adam; with the table alone one has no momentum."""
    flat = FlatParameters(model := Model())
    optimizers, start, gradients, through = trained(model, flat)
    bounds = [start for _, start in flat.bounds]
    before = [Shard(0, bounds[1]), Shard(bounds[1], bounds[2]), Shard(bounds[2], flat.num_elements)]
    writer = ShardWriter(tmp_path, len(before))
    directory = CheckpointDirectory(tmp_path, len(before), CheckpointConfig())
    assert directory.begin("u00000002", {}, 1) == ""
    for index, shard in enumerate(before):
        state = ShardState(start[shard.start : shard.stop].clone(), optimizers, start=shard.start)
        step(state, [gradient[shard.start : shard.stop] for gradient in gradients[:2]])
        writer.save_shard("u00000002", index, shard, state.state_tensors())
        [saved] = writer.wait()
        assert saved.error == ""
        directory.shard_saved(saved)
    for num_servers in (1, 2):
        after = cut_in_shards(optimizers, flat.num_elements, num_servers)
        for shard in after:
            resumed = ShardState(torch.zeros(shard.size), optimizers, start=shard.start)
            resumed.load_state_tensors(read_shard(tmp_path / "u00000002", len(before), shard))
            for version in (2, 3):
                part = gradients[version][shard.start : shard.stop]
                resumed.apply(blocks_of(part), scale=1.0, learning_rate=0.01, version=version + 1)
            assert torch.equal(resumed.parameters, through.parameters[shard.start : shard.stop])


def test_a_state_that_was_saved_goes_on_as_if_it_had_not_stopped() -> None:
    flat = FlatParameters(model := Model())
    optimizers, start, gradients, through = trained(model, flat)
    stopped = ShardState(start.clone(), optimizers)
    step(stopped, gradients[:2])
    resumed = ShardState(start.clone(), optimizers)
    resumed.load_state_tensors(stopped.state_tensors())
    step(resumed, gradients[2:])
    assert torch.equal(through.parameters, resumed.parameters)
    assert not torch.equal(through.parameters, stopped.parameters)


def test_a_shard_that_begins_with_a_matrix_may_stop_again_and_again() -> None:
    """Each optimizer takes up what it keeps alone: a matrix with Adam's step would save it as it was, for all."""
    flat = FlatParameters(model := Model())
    optimizers, start, gradients, _ = trained(model, flat)
    bounds = [start for _, start in flat.bounds]
    shard = Shard(bounds[1], bounds[3])  # the first layer

    def new() -> ShardState:
        return ShardState(start[shard.start : shard.stop].clone(), optimizers, start=shard.start)

    def go_on(state: ShardState, version: int) -> None:
        part = gradients[version][shard.start : shard.stop]
        state.apply(blocks_of(part), scale=1.0, learning_rate=0.01, version=version + 1)

    through, stopping = new(), new()
    for version in range(4):
        go_on(through, version)
        go_on(stopping, version)
        saved = stopping.state_tensors()
        stopping = new()
        stopping.load_state_tensors(saved)
        assert saved["optimizer.step"] == version + 1
    assert saved.keys() == through.state_tensors().keys()
    assert torch.equal(through.parameters, stopping.parameters)
    kept = [{*optimizer.state[block]} for optimizer, block in zip(stopping._optimizers, stopping._blocks, strict=True)]
    assert {"momentum"} in kept and {"step", "exp_avg", "exp_avg_sq"} in kept and len({*map(frozenset, kept)}) == 2


def test_a_run_says_when_matrices_make_shards_uneven_and_refuses_servers_without_one(tiny_run: TinyRun) -> None:
    def lines(*overrides: str) -> str:
        common = f"data.path={tiny_run.corpus}", "optimizer.name=muon", "mode=async-global"
        config = load_config(tiny_run.run_dir / "config.yaml", (*common, *overrides))
        return "\n".join(make_task(config, torch.device("cpu")).describe(2, 0))

    assert "shards" not in lines("roles.servers=1") and "shards" not in lines("roles.servers=per-device")
    uneven = lines("roles.servers=64")
    assert "one server's update costs" in uneven and "would do about as well (roles.servers)" in uneven
    with pytest.raises(UserError, match=r"cannot be cut into 1000000 shards.*is not cut; use \d+ servers"):
        lines("roles.servers=1000000")
