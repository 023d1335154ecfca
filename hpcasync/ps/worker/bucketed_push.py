"""Transfers beside the computation: a thread that pushes buckets of a gradient as backward completes them."""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from hpcasync.comm.shards import Shard
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import FlatParameters

# Large enough that a bucket's Put reaches the line's speed, small enough that many leave before backward ends.
BUCKET_ELEMENTS = 1 << 20


class GradientStream:
    """Pushes gradients bucket by bucket, in a thread, while the rest is being computed.

    A bucket is a run of parameters in the flat vector. Its gradient is complete when autograd has added to the last of
    them, which a hook tells; autograd adds to each once per backward pass, tied ones too.

    Args:
        client: of this worker; between `begin` and the end of the future of `end` only the thread may push with it.
            Its link should be `is_overlapped`.
        flat: the module's parameters and gradient.
        executor: of one thread.
    """

    def __init__(self, client: Client, flat: FlatParameters, executor: ThreadPoolExecutor) -> None:
        self._client = client
        self._flat = flat
        self._executor = executor
        self._buckets: list[Shard] = []
        self._sizes: list[int] = []
        self._missing: list[int] = []
        self._is_armed = False
        self._begun: Future[bool] | None = None
        self._written: list[Future[None]] = []
        self._register()

    def begin(self) -> None:
        """Call before the backward pass that completes the gradient."""
        self._missing = list(self._sizes)
        self._written = []
        self._begun = self._executor.submit(self._client.begin_push)
        self._is_armed = True

    def end(self, record: PushRecord) -> "Future[bool]":
        """The gradient is complete: push what is left, then the record. False if training has ended.

        After `Client.place_gradients`, another vector has taken the gradient's place when this returns.
        """
        if not self._is_armed:
            self.begin()
        self._is_armed = False
        assert self._begun is not None
        left = [bucket for bucket, missing in zip(self._buckets, self._missing, strict=True) if missing > 0]
        if record.num_tokens:
            self._written += [self._submit(bucket) for bucket in left]
        else:
            self._client.abandon(self._flat.gradient)
        finished = self._executor.submit(self._finish, self._begun, self._written, record)
        self._client.turn()
        return finished

    def _finish(self, begun: "Future[bool]", written: "list[Future[None]]", record: PushRecord) -> bool:
        if not begun.result():
            return False
        for future in written:
            future.result()  # raises what it raised
        self._client.end_push(record)
        return True

    def _submit(self, bucket: Shard) -> "Future[None]":
        begun = self._begun
        assert begun is not None
        # Begun here, after the computation of the bucket; the thread waits for it.
        staged = self._client.stage(self._flat.gradient, bucket)

        def write() -> None:
            if begun.result():
                self._client.write(staged(), bucket)

        return self._executor.submit(write)

    def _register(self) -> None:
        bounds = self._flat.bounds
        starts = [start for _, start in bounds] + [self._flat.num_elements]
        first = 0
        for number, (parameter, _) in enumerate(bounds):
            hook = partial(self._complete, len(self._buckets))
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            if starts[number + 1] - starts[first] >= BUCKET_ELEMENTS or number == len(bounds) - 1:
                self._buckets.append(Shard(starts[first], starts[number + 1]))
                self._sizes.append(number + 1 - first)
                first = number + 1

    def _complete(self, bucket: int, _: torch.Tensor) -> None:
        """One more parameter of a bucket has its gradient."""
        if not self._is_armed:
            return
        self._missing[bucket] -= 1
        if self._missing[bucket] == 0:
            self._written.append(self._submit(self._buckets[bucket]))
