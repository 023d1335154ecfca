"""A module's parameters and gradients as two contiguous vectors, so that push and pull copy nothing extra."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

# Every parameter starts on a 64-byte boundary.
_ALIGNMENT = 16


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

    Attributes:
        parameters: [num_elements] float32, on the module's device.
        gradient: [num_elements] float32, the same layout. Set it to zero before a backward pass, never to None.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        assert trainable, "the module has no trainable parameters"
        self._slots: list[_Slot] = []
        num_elements = 0
        for name, parameter in trainable:
            self._slots.append(_Slot(name, parameter.shape, num_elements))
            num_elements = -(-(num_elements + parameter.numel()) // _ALIGNMENT) * _ALIGNMENT
        self.num_trainable = sum(parameter.numel() for _, parameter in trainable)
        device = trainable[0][1].device
        self.parameters = torch.zeros(num_elements, dtype=torch.float32, device=device)
        self.gradient = torch.zeros(num_elements, dtype=torch.float32, device=device)
        self._parameters = [parameter for _, parameter in trainable]
        for slot, parameter in zip(self._slots, self._parameters, strict=True):
            self.parameters[slot.start : slot.stop].view(slot.shape).copy_(parameter.detach())
        self.use_parameters(self.parameters)
        self.use_gradient(self.gradient)

    @property
    def num_elements(self) -> int:
        """Length of the vectors, alignment included."""
        return self.parameters.numel()

    @property
    def bounds(self) -> list[tuple[torch.nn.Parameter, int]]:
        """The module's parameters with where each begins, in ascending order."""
        return [(parameter, slot.start) for parameter, slot in zip(self._parameters, self._slots, strict=True)]

    def use_parameters(self, vector: torch.Tensor) -> None:
        """Let the module's parameters be views of another vector of this layout, with what it holds."""
        self.parameters = vector
        for view, parameter in zip(self.views(vector), self._parameters, strict=True):
            parameter.data = view

    def views(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The part of a vector of this layout that belongs to each parameter, in its shape."""
        return [vector[slot.start : slot.stop].view(slot.shape) for slot in self._slots]

    def use_gradient(self, vector: torch.Tensor, views: list[torch.Tensor] | None = None) -> None:
        """Let gradients be summed into another vector of this layout; `views` are its own, if they are at hand."""
        self.gradient = vector
        views = self.views(vector) if views is None else views
        for view, parameter in zip(views, self._parameters, strict=True):
            parameter.grad = view

    @property
    def digest(self) -> str:
        """SHA-256 (16 hexadecimal digits) of names, shapes and positions."""
        text = ";".join(f"{slot.name}:{tuple(slot.shape)}@{slot.start}" for slot in self._slots)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def named_arrays(self, vector: torch.Tensor) -> dict[str, np.ndarray]:
        """Views of a vector in this layout (CPU) by parameter name."""
        array = vector.numpy()
        return {slot.name: array[slot.start : slot.stop].reshape(slot.shape) for slot in self._slots}

    def vector_of(self, arrays: dict[str, np.ndarray]) -> torch.Tensor:
        """The vector (CPU) of parameters given by name.

        Raises:
            KeyError: a parameter is missing.
            ValueError: a shape differs.
        """
        vector = torch.zeros(self.num_elements, dtype=torch.float32)
        for slot in self._slots:
            if tuple(arrays[slot.name].shape) != tuple(slot.shape):
                raise ValueError(f"{slot.name} has shape {arrays[slot.name].shape}, not {tuple(slot.shape)}")
            vector[slot.start : slot.stop] = torch.from_numpy(np.ascontiguousarray(arrays[slot.name])).flatten()
        return vector
