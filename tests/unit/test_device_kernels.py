"""The kernels for GPUs, by Triton's interpreter: against fused_apply.c bit by bit, torch's operations, and float64."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from update_cases import RATE, SIZES, Case, cases, check_sums

from hpcasync import device_kernels
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.nmt import loss as loss_module
from hpcasync.nmt.loss import summed_cross_entropy
from hpcasync.ps.server import fused_apply
from hpcasync.ps.server.group_sum import GroupSum
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.transport.gradient_formats import DenseWire
from hpcasync.train.loop.optimizers import optimizer_factory

try:
    from hpcasync.device_kernels import cross_entropy, updates
except ImportError as error:
    if os.environ.get("HPCASYNC_REQUIRE_TRITON") == "1":
        raise
    pytest.skip(f"no Triton: {error}", allow_module_level=True)


@pytest.fixture
def here() -> Iterator[None]:
    """The CPU is taken for a GPU, as far as kernels are concerned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_kernels, "can_use", lambda device: True)
        patch.setattr(fused_apply, "_is_host", lambda device: False)
        yield


by_c = pytest.mark.skipif(not fused_apply.is_available(), reason="no compiled kernel")


@by_c
@settings(max_examples=25)
@given(cases())
def test_an_update_has_the_bits_of_the_compiled_kernel(case: Case) -> None:
    expected = case.run(fused=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_apply, "_is_host", lambda device: False)
        actual, in_bfloat16 = case.run(fused=True), case.run(fused=True, dtype=torch.bfloat16)
    assert all(map(torch.equal, actual, expected))
    # The interpreter cuts the last bits off, where a GPU rounds.
    torch.testing.assert_close(in_bfloat16.pop(2).float(), expected.pop(2), rtol=2**-7, atol=0.0)
    assert all(map(torch.equal, in_bfloat16, expected))


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 5000])
def test_an_update_of_several_programs_is_the_formula(here: None, size: int) -> None:
    case = Case(
        size, 3, OptimizerConfig(name="adam", nesterov=True, betas=(0.8, 0.95), eps=1e-4, learning_rate=RATE), 0.1, 1.5
    )
    for actual, expected in zip(case.run(fused=True), case.by_formula(), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=2e-6)


@settings(max_examples=15)
@given(size=SIZES | st.just(5000), num_parts=st.integers(1, 6))
def test_sums_and_their_squares(size: int, num_parts: int) -> None:
    check_sums(updates.sum_of_squares, size, num_parts)


@by_c
@pytest.mark.parametrize("clips", [False, True])
def test_a_shard_is_updated_as_on_the_host(clips: bool) -> None:
    """Two pushes, one of them folded before the update; then a checkpoint, from which the other way goes on."""

    def train(state: ShardState, first: int, last: int) -> torch.Tensor:
        gradients = GroupSum(700, DenseWire(torch.float32))
        published = torch.empty(700)
        for version in range(first, last):
            pushes = torch.randn(2, 700, generator=torch.Generator().manual_seed(version))
            gradients.add_slot(pushes[0].view(torch.uint8))
            gradients.fold()
            gradients.add_slot(pushes[1].view(torch.uint8))
            scale = 1 / (1 + gradients.squared_norm() ** 0.5) if clips else 0.5
            state.apply(gradients.block, scale=scale, learning_rate=RATE, version=version, publish=published)
            gradients.clear()
        return published

    def new_state() -> ShardState:
        return ShardState(
            torch.ones(700), optimizer_factory(OptimizerConfig(name="adam", nesterov=True)), ema_decay=0.9
        )

    on_host = new_state()
    train(on_host, 1, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_kernels, "can_use", lambda device: True)
        patch.setattr(fused_apply, "_is_host", lambda device: False)
        on_device = new_state()
        train(on_device, 1, 3)
        saved = on_device.state_tensors()
        assert all(torch.equal(saved[key], value) for key, value in on_host.state_tensors().items())
        published = train(on_device, 3, 5)
    on_host.load_state_tensors(saved)
    assert torch.equal(train(on_host, 3, 5), published)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax_by_blocks(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, scale: float) -> None:
    """Three blocks of columns, the last of one column; targets in all of them, and the largest logit in any."""
    monkeypatch.setattr(cross_entropy, "_BLOCK", 16)
    generator = torch.Generator().manual_seed(5)
    logits = (scale * torch.randn(40, 33, generator=generator)).to(dtype)
    targets = torch.arange(40)[:, None] % 33
    exact = logits.double()
    log_normalisers, target_logits = torch.empty(2, 40, 1).unbind(0)
    untouched = logits.clone()
    cross_entropy.softmax_(untouched, targets, 0.9, log_normalisers, target_logits, gradient=False)
    assert torch.equal(untouched, logits)
    torch.testing.assert_close(log_normalisers.double(), exact.logsumexp(1, keepdim=True), rtol=1e-6, atol=1e-6)
    assert torch.equal(target_logits, logits.float().gather(1, targets))
    cross_entropy.softmax_(logits, targets, 0.9, log_normalisers, target_logits, gradient=True)
    expected = exact.softmax(1).scatter_add(1, targets, torch.full_like(exact, -0.9))
    torch.testing.assert_close(logits.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("low", [None, torch.bfloat16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradients(
    here: None, monkeypatch: pytest.MonkeyPatch, low: torch.dtype | None, label_smoothing: float
) -> None:
    """Against the plain formula in float64, with embeddings that the output shares."""
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", {"cpu": 64 * 50})  # 130 rows in three chunks
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(50, 8, generator=generator)
    sources, targets = torch.randint(50, (2, 130), generator=generator).unbind(0)

    def gradient(weight: torch.Tensor, *, plain: bool) -> tuple[torch.Tensor, torch.Tensor]:
        weight = weight.clone().requires_grad_()
        hidden = functional.embedding(sources, weight).tanh()
        if plain:
            loss = functional.cross_entropy(
                hidden @ weight.t(), targets, label_smoothing=label_smoothing, reduction="sum"
            )
        else:
            with torch.autocast("cpu", low or torch.bfloat16, enabled=low is not None):
                loss, _ = summed_cross_entropy(hidden, weight, targets, label_smoothing)
        return loss.detach(), torch.autograd.grad(loss, weight)[0]

    loss, actual = gradient(weight, plain=False)
    exact, expected = gradient(weight.double(), plain=True)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6 if low is None else 5e-3)
    assert (actual - expected).norm() < (1e-6 if low is None else 2e-2) * expected.norm()


def test_what_is_tried_at_the_start_of_a_run_runs() -> None:
    device_kernels.try_all(torch.device("cpu"))


def test_the_kernels_compile_for_gpus() -> None:
    """Which needs none. No products are fused into sums: the bits would not be those of the host."""
    source = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hpcasync.device_kernels import cross_entropy, updates
f32, parts = "*fp32", ("*fp32", "*fp32", "*fp32")
numbers = "scale coupled_decay kept one_less_beta1 beta2 one_less_beta2 mean_factor gradient_factor root_factor eps"
numbers = [*numbers.split(), "average_weight", "lookahead"]
step = {"parts": parts, **dict.fromkeys(["parameters", "mean", "square", "average"], f32), "published": "*bf16"}
step |= {"size": "i64", **dict.fromkeys(numbers, "fp32")}
softmax = {"logits": "*bf16", "targets": "*i64", "log_normalisers": f32, "target_logits": f32, "num_pieces": "i32"}
kernels = [
    (updates._step, step, dict(NUM_PARTS=3, HAS_AVERAGE=True, IS_PUBLISHED=True, BLOCK=1024)),
    (updates._sum_of_squares, {"parts": parts, "total": f32, "squares": "*fp64", "size": "i64"},
     dict(NUM_PARTS=3, IS_WRITTEN=True, BLOCK=4096)),
    (cross_entropy._softmax, {**softmax, "target_weight": "fp32"}, dict(IS_REPLACED=True, BLOCK=4096)),
]
for capability in (75, 80, 90, 120):
    for kernel, signature, constants in kernels:
        named = {**signature, **dict.fromkeys(constants, "constexpr")}
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(ASTSource(kernel, named, constants), target, {"enable_fp_fusion": False})
        assert compiled.asm["cubin"]
        assert kernel is cross_entropy._softmax or "fma." not in compiled.asm["ptx"], compiled.asm["ptx"]
    # What a warp reads of the target must not be what another has put in its place already.
    ptx = compiled.asm["ptx"]
    assert "ld.global.b16" not in ptx[ptx.rindex("bar.sync") : ptx.rindex("st.global.b32")], ptx
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
