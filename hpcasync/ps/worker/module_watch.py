"""Notices what would make a module train wrongly without a word: its parameters and gradients lie elsewhere."""

from collections.abc import Sequence

import torch

from hpcasync.errors import UserError

# Between walks over the whole module: they find what was added to it, and take longer than the other checks.
_CHECKS_PER_WALK = 64

_ADVICE_GRADIENT = (
    "so what is computed there is never pushed: between steps write flat.gradient.zero_() in place of zero_grad(), "
    "which takes gradients away (zero_grad(set_to_none=False) does not), and leave out backward(create_graph=True)"
)
_ADVICE_PARAMETER = (
    "which happens in double(), half(), to(), load_state_dict(assign=True) or flatten_parameters(), so pulls no longer "
    "reach it: change the module first, then make FlatParameters of it"
)
_ADVICE_UNFROZEN = (
    "so it would never change: make it trainable before FlatParameters, or close the engine and make both anew"
)


class ModuleWatch:
    """Compares a module with what it was when its parameters moved into a vector. Costs some microseconds."""

    def __init__(
        self, module: torch.nn.Module, trainable: dict[str, torch.nn.Parameter], starts: Sequence[int]
    ) -> None:
        self._module = module
        self._places = [
            (name, parameter, start) for (name, parameter), start in zip(trainable.items(), starts, strict=True)
        ]
        self._frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
        self._moved = {id(parameter) for parameter in trainable.values()}
        # Tied parameters are held several times.
        self._holders = [
            (f"{prefix}.{name}" if prefix else name, holder._parameters, name, parameter)
            for prefix, holder in module.named_modules()
            for name, parameter in holder._parameters.items()
            if parameter is not None and parameter.requires_grad
        ]
        self._num_checks = 0

    def check(self, parameters: torch.Tensor) -> None:
        """Raises a UserError unless the module computes with this vector, and nothing else of it can be trained."""
        first, size = parameters.data_ptr(), parameters.element_size()
        for name, parameter, start in self._places:
            if parameter.data_ptr() != first + start * size:
                raise UserError(f"{name} has left the vector of parameters, {_ADVICE_PARAMETER}")
        for name, values, key, parameter in self._holders:
            if values.get(key) is not parameter:
                raise UserError(f"{name} has been replaced by another parameter, {_ADVICE_PARAMETER}")
        for name, parameter in self._frozen:
            if parameter.requires_grad:
                raise UserError(f"{name} has been made trainable after FlatParameters, {_ADVICE_UNFROZEN}")
        if self._num_checks % _CHECKS_PER_WALK == 0:
            self._find_new()
        self._num_checks += 1

    def check_gradients(self, gradient: torch.Tensor) -> None:
        """Raises a UserError unless backward passes add to this vector."""
        first, size = gradient.data_ptr(), gradient.element_size()
        for name, parameter, start in self._places:
            if parameter.grad is None or parameter.grad.data_ptr() != first + start * size:
                raise UserError(f"the gradient of {name} has left the vector of gradients, {_ADVICE_GRADIENT}")

    def _find_new(self) -> None:
        for name, parameter in self._module.named_parameters():
            if parameter.requires_grad and id(parameter) not in self._moved:
                raise UserError(f"{name} has been added after FlatParameters, {_ADVICE_UNFROZEN}")


def require_flattenable(trainable: dict[str, torch.nn.Parameter]) -> None:
    """Raises a UserError for parameters that cannot move into one float32 vector as they are."""
    if not trainable:
        raise UserError("the module has no trainable parameters: nothing in it has requires_grad")
    first_name, first = next(iter(trainable.items()))
    for name, parameter in trainable.items():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}, and the engine trains float32: call "
                "module.float() first; for reduced precision compute under torch.autocast"
            )
        if parameter.device != first.device:
            raise UserError(
                f"{name} is on {parameter.device} and {first_name} on {first.device}: bring all to one device first"
            )
