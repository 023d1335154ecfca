"""A module's parameters and gradients as two contiguous vectors, so that push and pull copy nothing extra."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import torch

from hpcasync.ps.worker.buffers import Buffers
from hpcasync.ps.worker.module_watch import ModuleWatch, require_flattenable

# Every parameter starts on a 64-byte boundary.
_ALIGNMENT = 16

# By the address of the vector of parameters.
_OWNERS: "WeakValueDictionary[int, FlatParameters]" = WeakValueDictionary()


@dataclass(frozen=True)
class _Slot:
    name: str
    shape: torch.Size
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.shape.numel()


class FlatParameters:
    """Moves a module's trainable parameters into one float32 vector and its gradients into another.

    Tied parameters are stored once, under their first name. The module keeps working: its parameters and their `.grad`
    become views.

    Reading `parameters` or `gradient` checks that they still are the module's (`ps.worker.module_watch`).

    Args:
        module: whose parameters they are.
        order: of its trainable parameters in the vector; default: the module's.

    Attributes:
        buffers: what the module keeps beside its parameters.

    Raises:
        UserError: parameters are not float32, are on several devices, or there are none.
    """

    def __init__(self, module: torch.nn.Module, order: Sequence[torch.nn.Parameter] = ()) -> None:
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        require_flattenable(trainable)
        if order:
            place = {id(parameter): number for number, parameter in enumerate(order)}
            trainable = dict(sorted(trainable.items(), key=lambda item: place[id(item[1])]))
        self._slots: list[_Slot] = []
        num_elements = 0
        for name, parameter in trainable.items():
            self._slots.append(_Slot(name, parameter.shape, num_elements))
            num_elements = -(-(num_elements + parameter.numel()) // _ALIGNMENT) * _ALIGNMENT
        self.num_trainable = sum(parameter.numel() for parameter in trainable.values())
        self._parameters = list(trainable.values())
        device = self._parameters[0].device
        vector = torch.zeros(num_elements, dtype=torch.float32, device=device)
        for slot, parameter in zip(self._slots, self._parameters, strict=True):
            vector[slot.start : slot.stop].view(slot.shape).copy_(parameter.detach())
        self._frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
        self.buffers = Buffers(module)
        self.use_parameters(vector)
        self.use_gradient(torch.zeros_like(vector))
        self._watch = ModuleWatch(module, trainable, [slot.start for slot in self._slots])

    @property
    def parameters(self) -> torch.Tensor:
        """[num_elements] float32, on the module's device.

        Raises:
            UserError: the module does not compute with it any more, or more of it has become trainable.
        """
        self._watch.check(self._vector)
        return self._vector

    @parameters.setter
    def parameters(self, vector: torch.Tensor) -> None:
        # `flat.parameters -= step` changes the vector, then assigns it.
        assert vector is self._vector, "copy into the vector, or call use_parameters"

    @property
    def gradient(self) -> torch.Tensor:
        """[num_elements] float32, the same layout. Set it to zero before a backward pass, never to None.

        Raises:
            UserError: backward passes do not add to it any more.
        """
        self._watch.check_gradients(self._gradient)
        return self._gradient

    @gradient.setter
    def gradient(self, vector: torch.Tensor) -> None:
        assert vector is self._gradient, "copy into the vector, or call use_gradient"

    @property
    def num_elements(self) -> int:
        """Length of the vectors, alignment included."""
        return self._vector.numel()

    @property
    def bounds(self) -> list[tuple[torch.nn.Parameter, int]]:
        """The module's parameters with where each begins, in ascending order."""
        return [(parameter, slot.start) for parameter, slot in zip(self._parameters, self._slots, strict=True)]

    def use_parameters(self, vector: torch.Tensor) -> None:
        """Let the module's parameters be views of another vector of this layout, with what it holds."""
        self._vector = vector
        _OWNERS[vector.data_ptr()] = self
        for view, parameter in zip(self.views(vector), self._parameters, strict=True):
            parameter.data = view

    def views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The part of a vector of this layout that belongs to each parameter, in its shape."""
        return [vector[slot.start : slot.stop].view(slot.shape) for slot in self._slots]

    def use_gradient(self, vector: torch.Tensor, views: list[torch.Tensor] | None = None) -> None:
        """Let gradients be summed into another vector of this layout; `views` are its own, if they are at hand."""
        self._gradient = vector
        views = self.views(vector) if views is None else views
        for view, parameter in zip(views, self._parameters, strict=True):
            parameter.grad = view

    def drop_gradient(self) -> None:
        """Let one zero stand for the whole gradient, which is not read nor written any more."""
        self.use_gradient(self._gradient.new_zeros(1).expand(self.num_elements))

    @property
    def layout(self) -> list[str]:
        """Name, shape and position of every parameter."""
        return [f"{slot.name}:{tuple(slot.shape)}@{slot.start}" for slot in self._slots]

    @property
    def digest(self) -> str:
        """SHA-256 (16 hexadecimal digits) of names, shapes and positions."""
        return hashlib.sha256(";".join(self.layout).encode()).hexdigest()[:16]

    def frozen_arrays(self) -> dict[str, np.ndarray]:
        """What the module's frozen parameters hold, by name."""
        return {name: parameter.detach().cpu().numpy() for name, parameter in self._frozen.items()}

    def named_arrays(self, vector: torch.Tensor) -> dict[str, np.ndarray]:
        """Views of a vector in this layout (CPU) by parameter name."""
        array = vector.numpy()
        return {slot.name: array[slot.start : slot.stop].reshape(slot.shape) for slot in self._slots}


def owner_of(vector: torch.Tensor) -> FlatParameters | None:
    """The `FlatParameters` whose parameters lie in this very vector, if any do."""
    owner = _OWNERS.get(vector.data_ptr())
    return owner if owner is not None and owner.parameters.data_ptr() == vector.data_ptr() else None
