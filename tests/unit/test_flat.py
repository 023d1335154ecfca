"""The flat vectors: parameters and gradients are views of them, tied parameters are there once."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hpcasync.errors import UserError
from hpcasync.ps.worker.flat_parameters import FlatParameters


class Tied(nn.Module):
    """An embedding that is also the output layer, a frozen table, and a bias of odd length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.output = nn.Linear(3, 5)
        self.output.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(self.embedding(ids))
        return logits


def make() -> tuple[Tied, dict[str, torch.Tensor], FlatParameters]:
    torch.manual_seed(3)
    module = Tied()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    return module, before, FlatParameters(module)


def test_tied_parameters_are_stored_once_on_aligned_positions() -> None:
    module, before, flat = make()
    assert flat.num_trainable == 5 * 3 + 5
    assert flat.num_elements == 16 + 16  # 15 and 5 elements, each rounded up to 64 bytes
    arrays = flat.named_arrays(flat.parameters)
    assert list(arrays) == ["embedding.weight", "output.bias"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name].numpy())
    assert module.output.weight is module.embedding.weight
    assert flat.parameters[15] == 0 and not flat.parameters[21:].any()


def test_parameters_are_views() -> None:
    module, _, flat = make()
    flat.parameters.fill_(0.5)
    assert torch.equal(module.embedding.weight.detach(), torch.full((5, 3), 0.5))
    assert torch.equal(module.output.bias.detach(), torch.full((5,), 0.5))
    assert torch.equal(module.frozen, torch.ones(4))


def test_gradients_are_views_after_several_backward_passes() -> None:
    module, _, flat = make()
    reference = Tied()
    reference.load_state_dict(module.state_dict())
    ids = torch.tensor([0, 2, 2])
    for model in (module, reference):
        for _ in range(2):
            model(ids).square().sum().backward()
    for name, gradient in flat.named_arrays(flat.gradient).items():
        expected = reference.get_parameter(name).grad
        assert expected is not None
        np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-6)
        own = module.get_parameter(name).grad
        assert own is not None and own.data_ptr() == torch.from_numpy(gradient).data_ptr()
    assert not flat.gradient[21:].any()
    flat.gradient.zero_()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters() if p.requires_grad)


def test_digest_tells_layouts_apart() -> None:
    digest = make()[2].digest
    assert digest == make()[2].digest and len(digest) == 16
    assert digest != FlatParameters(nn.Linear(3, 5)).digest
    # The same number of parameters in another shape.
    assert FlatParameters(nn.Linear(2, 8, bias=False)).digest != FlatParameters(nn.Linear(8, 2, bias=False)).digest


def test_modules_that_cannot_move() -> None:
    with pytest.raises(UserError, match="no trainable parameters"):
        FlatParameters(nn.ReLU())
    with pytest.raises(
        UserError, match=r"^bias is float64, and the engine trains float32: call module.float\(\) first"
    ):
        module = nn.Linear(3, 2)
        module.bias = nn.Parameter(module.bias.double())
        FlatParameters(module)
    with pytest.raises(UserError, match=r"^bias is on meta and weight on cpu: bring all to one device"):
        module = nn.Linear(3, 2)
        module.bias = nn.Parameter(module.bias.to("meta"))
        FlatParameters(module)


def test_vectors_may_be_changed_in_place() -> None:
    module, before, flat = make()
    flat.gradient += 2
    flat.parameters -= 0.5 * flat.gradient
    assert torch.equal(module.output.bias, before["output.bias"] - 1)
    with pytest.raises(AssertionError, match="copy into the vector"):
        flat.gradient = torch.zeros(flat.num_elements)


def assign(module: Tied) -> None:
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda module: module.double().float(),
            r"^embedding\.weight has left the vector of parameters, which happens",
        ),
        (lambda module: module.to("meta"), r"^embedding\.weight has been replaced by another parameter"),
        (assign, r"^embedding\.weight has been replaced by another parameter"),
        (
            lambda module: setattr(module.output, "weight", nn.Parameter(torch.ones(5, 3))),
            r"^output\.weight has been repl",
        ),
        (lambda module: module.frozen.requires_grad_(), r"^frozen has been made trainable after FlatParameters"),
    ],
    ids=["convert", "move", "assign", "untie", "unfreeze"],
)
def test_a_module_that_has_left_its_vectors(change: Callable[[Tied], object], said: str) -> None:
    module, _, flat = make()
    assert torch.equal(flat.parameters, flat.parameters)
    change(module)
    with pytest.raises(UserError, match=said):
        flat.parameters.zero_()


def test_what_is_added_to_a_module_is_found() -> None:
    module, _, flat = make()
    flat.parameters.zero_()
    module.adapter = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"^adapter\.weight has been added after FlatParameters"):
        for _ in range(100):
            flat.parameters.zero_()


@pytest.mark.parametrize("is_anew", [False, True])
def test_gradients_that_have_left_their_vector(*, is_anew: bool) -> None:
    module, _, flat = make()
    module.zero_grad(set_to_none=False)
    assert not flat.gradient.any()
    module.zero_grad()
    if is_anew:
        module(torch.tensor([1])).sum().backward()
    flat.parameters.zero_()  # which are where they were
    with pytest.raises(
        UserError, match=r"the gradient of embedding\.weight has left .* flat\.gradient\.zero_\(\) in place"
    ):
        flat.gradient.zero_()
