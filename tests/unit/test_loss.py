"""The fused output layer and loss against torch's."""

import weakref
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpcasync.nmt import loss as loss_module
from hpcasync.nmt.loss import summed_cross_entropy

N, DIM, NUM_PIECES = 130, 8, 17


def random_case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, DIM, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(NUM_PIECES, DIM, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(NUM_PIECES, (N,), generator=generator)


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """130 rows in chunks of 64: two full ones and one of 2."""
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", {"cpu": 64 * NUM_PIECES})


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.6])
def test_equals_torch(label_smoothing: float) -> None:
    hidden, weight, targets = random_case()
    loss, negative_log_likelihood = summed_cross_entropy(hidden, weight, targets, label_smoothing)
    logits = hidden @ weight.t()
    expected = functional.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="sum")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(negative_log_likelihood, functional.cross_entropy(logits, targets, reduction="sum"))
    assert not negative_log_likelihood.requires_grad
    gradients = torch.autograd.grad(loss * 0.5, (hidden, weight))
    for gradient, expected_gradient in zip(
        gradients, torch.autograd.grad(expected * 0.5, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-4)


def test_without_gradients_the_losses_are_the_same() -> None:
    hidden, weight, targets = random_case()
    expected = summed_cross_entropy(hidden, weight, targets, 0.1)
    with torch.no_grad():
        for value, expected_value in zip(summed_cross_entropy(hidden, weight, targets, 0.1), expected, strict=True):
            assert not value.requires_grad
            torch.testing.assert_close(value, expected_value.detach())


def test_by_hand() -> None:
    # Logits 0 and log 3: probabilities 1/4 and 3/4.
    weight = torch.tensor([[0.0], [1.0]])
    hidden = torch.tensor([[3.0]]).log().requires_grad_()
    loss, negative_log_likelihood = summed_cross_entropy(hidden, weight, torch.tensor([1]), 0.2)
    assert negative_log_likelihood.item() == pytest.approx(0.2876821)  # log 4/3
    assert loss.item() == pytest.approx(0.9 * 0.2876821 + 0.1 * 1.3862944)
    loss.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and hidden.grad.item() == pytest.approx(0.75 - 0.9)


def test_gradients_in_double_precision() -> None:
    hidden, weight, targets = random_case(torch.float64)
    hidden, targets = hidden[:5].detach().requires_grad_(), targets[:5]
    assert torch.autograd.gradcheck(lambda h, w: summed_cross_entropy(h, w, targets, 0.1)[0], (hidden, weight))


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_extreme_logits_stay_finite(scale: float) -> None:
    # Probabilities of targets underflow to zero here; their logarithms must not.
    hidden, weight, targets = random_case()
    loss, negative_log_likelihood = summed_cross_entropy(hidden * scale, weight, targets, 0.1)
    expected = functional.cross_entropy((hidden * scale) @ weight.t(), targets, reduction="sum")
    torch.testing.assert_close(negative_log_likelihood, expected, rtol=1e-5, atol=0.0)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_products_in_low_precision_only(dtype: torch.dtype) -> None:
    hidden, weight, targets = random_case()
    expected, expected_likelihood = summed_cross_entropy(hidden, weight, targets, 0.1)
    with torch.autocast("cpu", dtype):
        loss, negative_log_likelihood = summed_cross_entropy(hidden.to(dtype), weight, targets, 0.1)
    assert loss.dtype == negative_log_likelihood.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0.0)
    torch.testing.assert_close(negative_log_likelihood, expected_likelihood, rtol=0.01, atol=0.0)
    for gradient, exact in zip(
        torch.autograd.grad(loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - exact).abs().max() < 0.02 * exact.abs().max()


def test_gradients_accumulate() -> None:
    hidden, weight, targets = random_case()
    for _ in range(2):
        summed_cross_entropy(hidden, weight, targets, 0.1)[0].backward()  # type: ignore[no-untyped-call]
    (once,) = torch.autograd.grad(summed_cross_entropy(hidden, weight, targets, 0.1)[0], weight)
    torch.testing.assert_close(weight.grad, 2 * once)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What tensors that operations make occupy at once, at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.most: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and id(storage := leaf.untyped_storage()) not in given:
                self._count(storage)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._uncount, size)

    def _uncount(self, size: int) -> None:
        self.now -= size


def most_bytes(device: str, num_rows: int, dim: int, num_pieces: int, low: torch.dtype | None) -> int:
    hidden = torch.zeros(num_rows, dim, device=device, dtype=low, requires_grad=True)
    weight = torch.zeros(num_pieces, dim, device=device, requires_grad=True)
    targets = torch.zeros(num_rows, dtype=torch.int64, device=device)
    live = LiveBytes()
    with live, torch.autocast("cpu", low or torch.bfloat16, enabled=low is not None):
        loss, _ = summed_cross_entropy(hidden, weight, targets, 0.1)
        loss.backward()  # type: ignore[no-untyped-call]
    return live.most


def test_no_more_than_a_chunk_of_logits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """25,000 tokens of 32,000 pieces: 3.2 GB in float32. Tensors without values have sizes as well."""
    chunk, num_rows, dim, num_pieces = 1 << 26, 25_000, 512, 32_000
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", {"meta": chunk})
    of_gradients = 2 * 4 * (num_rows + num_pieces) * dim
    most = most_bytes("meta", num_rows, dim, num_pieces, None)
    assert 4 * chunk < most < 1.1 * (4 * chunk + of_gradients) < 0.2 * 4 * num_rows * num_pieces


def test_low_precision_holds_a_chunk_of_each_type(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, num_rows, dim, num_pieces = 1 << 18, 4000, 8, 1000
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", {"cpu": chunk})
    most = most_bytes("cpu", num_rows, dim, num_pieces, torch.bfloat16)
    assert 6 * chunk < most < 1.1 * (6 * chunk + 8 * (num_rows + num_pieces) * dim)
