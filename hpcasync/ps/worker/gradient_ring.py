"""The vectors that take turns as a worker's gradient: while one is computed, servers read those before."""

from collections.abc import Sequence

import torch

from hpcasync.ps.protocol.working import Wait, before_reuse
from hpcasync.ps.worker.flat_parameters import FlatParameters


class GradientRing:
    """Puts one vector after the other in place of `flat.gradient`.

    Args:
        shared: [num_elements] float32, read by servers: the gradient of push n is to be computed in vector n modulo
            their number. Empty: gradients are copied when they are pushed.
        num_private: vectors where they are copied.
        sequence: of the next push.
    """

    def __init__(self, flat: FlatParameters, shared: Sequence[torch.Tensor], num_private: int, sequence: int) -> None:
        self._flat = flat
        self._is_shared = bool(shared)
        self._sequence = sequence
        self._in_place = flat.gradient
        others = [torch.empty_like(self._in_place) for _ in range(num_private - 1)]
        self._use_in_turn(list(shared) or [self._in_place, *others])
        self.end()

    def begin(self) -> Wait | None:
        """Go on to the next push; returns what has to be waited for before `end`."""
        self._sequence += 1
        return before_reuse(self._sequence, len(self._vectors)) if self._is_shared else None

    def end(self) -> None:
        """Put the next push's vector in place."""
        index = self._sequence % len(self._vectors)
        if self._vectors[index] is not self._in_place:
            self._in_place = self._vectors[index]
            self._flat.use_gradient(self._in_place, self._views[index])

    def leave(self) -> None:
        """Put a vector in place that nobody else reads, and stay there."""
        if self._is_shared:
            self._is_shared = False
            self._use_in_turn([torch.zeros_like(self._in_place)])
            self.end()

    def _use_in_turn(self, vectors: list[torch.Tensor]) -> None:
        self._vectors = vectors
        # Cutting a vector for a hundred parameters takes as long as copying a megabyte.
        self._views = [self._flat.views(vector) for vector in vectors]
