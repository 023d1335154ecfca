"""Runs of parameters in the flat vector, and when backward has completed the gradient of each."""

from collections.abc import Callable
from functools import partial

import torch

from hpcasync.comm.shards import Shard
from hpcasync.ps.worker.flat_parameters import FlatParameters

# Of what is pushed: a bucket's Put reaches the line's speed, and many leave before backward ends.
PUSHED_ELEMENTS = 1 << 20
# Of what is summed over all workers: 16 MiB come near the line's speed, and most have left when backward ends.
SUMMED_ELEMENTS = 1 << 22


class GradientBuckets:
    """Tells when the gradient of a bucket is complete.

    It is when autograd has added to the last of its parameters, which a hook tells; autograd adds to each once per
    backward pass, tied ones too.

    Args:
        least_elements: of a bucket; the last one may be smaller.
        on_complete: takes the number of a bucket, during a backward pass that was announced by `arm`.

    Attributes:
        bounds: of each bucket; together they are the whole vector.
    """

    def __init__(self, flat: FlatParameters, least_elements: int, on_complete: Callable[[int], None]) -> None:
        self._on_complete = on_complete
        self._missing: list[int] = []
        self._is_armed = False
        self.bounds: list[Shard] = []
        self._sizes: list[int] = []
        parameters = flat.bounds
        starts = [start for _, start in parameters] + [flat.num_elements]
        first = 0
        for number, (parameter, _) in enumerate(parameters):
            hook = partial(self._complete, len(self.bounds))
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            if starts[number + 1] - starts[first] >= least_elements or number == len(parameters) - 1:
                self.bounds.append(Shard(starts[first], starts[number + 1]))
                self._sizes.append(number + 1 - first)
                first = number + 1

    @property
    def is_armed(self) -> bool:
        return self._is_armed

    def arm(self) -> None:
        """The backward pass that is about to begin completes the gradient."""
        self._missing = list(self._sizes)
        self._is_armed = True

    def disarm(self) -> list[int]:
        """The gradient is as it will be; returns the buckets that `on_complete` has not been told of."""
        left = [number for number, missing in enumerate(self._missing) if missing > 0]
        if not self._is_armed:
            left = list(range(len(self.bounds)))
        self._is_armed = False
        return left

    def _complete(self, bucket: int, _: torch.Tensor) -> None:
        """One more parameter of a bucket has its gradient."""
        if not self._is_armed:
            return
        self._missing[bucket] -= 1
        if self._missing[bucket] == 0:
            self._on_complete(bucket)
