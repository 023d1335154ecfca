"""The compiled kernel of updates: against its formula in float64, against torch's operations, and bit by bit."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from update_cases import BETAS, RATE, SIZES, Case, cases, check_sums

from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.ps.server import fused_apply, kernel_library
from hpcasync.ps.server.block_update import BlockUpdate
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.train.loop.optimizers import optimizer_factory

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _kernel() -> None:
    if not fused_apply.is_available():
        reason = kernel_library.load()[1]
        if os.environ.get("HPCASYNC_REQUIRE_KERNEL") == "1":
            pytest.fail(f"HPCASYNC_REQUIRE_KERNEL=1, but there is no kernel: {reason}")
        pytest.skip(f"no compiled kernel: {reason}")


@settings(max_examples=60)
@given(cases())
def test_it_is_the_formula_and_what_torch_makes(case: Case) -> None:
    fused = case.run(fused=True)
    for actual, by_torch, expected in zip(fused, case.run(fused=False), case.by_formula(), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(actual, by_torch, rtol=1e-5, atol=2e-6)
    in_bfloat16 = case.run(fused=True, dtype=torch.bfloat16)
    assert torch.equal(in_bfloat16[2], fused[2].bfloat16())
    assert all(map(torch.equal, in_bfloat16[:2], fused[:2]))


def state_of(values: torch.Tensor, *, fused: bool = True) -> ShardState:
    return ShardState(
        values.clone(), optimizer_factory(OptimizerConfig(name="adam", nesterov=True)), ema_decay=0.9, fused=fused
    )


def apply(state: ShardState, parts: list[torch.Tensor], version: int) -> torch.Tensor:
    published = torch.empty_like(state.parameters)
    state.apply(
        lambda start, stop: [part[start:stop] for part in parts],
        scale=0.1,
        learning_rate=RATE,
        version=version,
        publish=published,
        lookahead=1.0,
    )
    return published


@settings(max_examples=40)
@given(size=st.integers(2, 400), data=st.data())
def test_no_bit_depends_on_where_the_vector_is_cut(size: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, size - 1))
    start, *parts = torch.randn(4, size, generator=torch.Generator().manual_seed(size))
    whole, left, right = state_of(start), state_of(start[:cut]), state_of(start[cut:])
    for version in (1, 2):
        published = apply(whole, parts, version)
        pieces = [
            apply(left, [part[:cut] for part in parts], version),
            apply(right, [part[cut:] for part in parts], version),
        ]
        assert torch.equal(published, torch.cat(pieces))
    saved, one, other = whole.state_tensors(), left.state_tensors(), right.state_tensors()
    for key, value in saved.items():
        assert torch.equal(value, one[key] if key == "optimizer.step" else torch.cat([one[key], other[key]]))


@pytest.mark.parametrize("fused", [False, True])
def test_a_checkpoint_of_either_way_is_one_of_the_other(fused: bool) -> None:
    start, *parts = torch.randn(3, 300, generator=torch.Generator().manual_seed(1))
    first, second = state_of(start, fused=fused), state_of(start, fused=not fused)
    apply(first, parts, 1)
    saved = first.state_tensors()
    second.load_state_tensors(saved)
    resumed = second.state_tensors()
    assert saved.keys() == resumed.keys() and all(torch.equal(saved[key], resumed[key]) for key in saved)
    torch.testing.assert_close(apply(second, parts, 2), apply(first, parts, 2), rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(size=SIZES, num_parts=st.integers(1, 6))
def test_sums_and_their_squares(size: int, num_parts: int) -> None:
    check_sums(fused_apply.sum_of_squares, size, num_parts)


def test_other_optimizers_are_torchs() -> None:
    block = torch.nn.Parameter(torch.ones(3))
    update = BlockUpdate([torch.ones(3)], 1.0, torch.empty(3))
    assert not fused_apply.can_make(update, torch.optim.SGD([block]), block)
    assert not fused_apply.can_make(update, torch.optim.Adam([block], amsgrad=True), block)
    on_double = BlockUpdate([torch.ones(3).double()], 1.0, torch.empty(3))
    assert not fused_apply.can_make(on_double, torch.optim.Adam([block]), block)
    state = ShardState(torch.ones(3), lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    state.apply(lambda start, stop: [torch.ones(3), torch.ones(3)], scale=0.5, learning_rate=0.1, version=1)
    torch.testing.assert_close(state.parameters, torch.full((3,), 0.9))


def test_a_library_of_another_source_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "fused_apply.c"
    changed.write_text("/* changed */")
    monkeypatch.setattr(kernel_library, "_SOURCE", changed)
    library, reason = kernel_library.load.__wrapped__()
    assert library is None and reason == "compiled from another fused_apply.c than this one"


def test_without_a_compiler_the_package_is_built_as_well(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "CC": "/no/such/compiler"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no compiler here")
def test_older_processors_compute_the_same_bits(tmp_path: Path) -> None:
    compiled = tmp_path / "baseline.so"
    options = ["-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]
    defined = ["-DFOR_EACH_PROCESSOR=", '-DSOURCE_DIGEST="none"']
    source = ROOT / "hpcasync" / "ps" / "server" / "fused_apply.c"
    subprocess.run(["cc", *options, *defined, source, "-o", compiled, "-lm"], check=True)
    library = ctypes.CDLL(str(compiled))
    library.hpcasync_sum.restype, library.hpcasync_step.restype = ctypes.c_double, None
    case = Case(1000, 5, OptimizerConfig(name="adam", nesterov=True, weight_decay=0.1, betas=BETAS), 0.1, 1.5)
    expected = [*case.run(fused=True), torch.tensor(fused_apply.sum_of_squares(case.gradients[0]))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_apply, "load", lambda: (library, ""))
        actual = [*case.run(fused=True), torch.tensor(fused_apply.sum_of_squares(case.gradients[0]))]
    assert all(map(torch.equal, actual, expected))
