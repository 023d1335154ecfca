"""Transfers beside the computation: a thread that pushes buckets of a gradient as backward completes them."""

from concurrent.futures import Future, ThreadPoolExecutor

from hpcasync.comm.shards import Shard
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.worker.buckets import PUSHED_ELEMENTS, GradientBuckets
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import FlatParameters


class GradientStream:
    """Pushes gradients bucket by bucket, in a thread, while the rest is being computed.

    Args:
        client: of this worker; between `begin` and the end of the future of `end` only the thread may push with it.
            Its link should be `is_overlapped`.
    """

    def __init__(self, client: Client, flat: FlatParameters, executor: ThreadPoolExecutor) -> None:
        self._client = client
        self._flat = flat
        self._executor = executor
        self._buckets = GradientBuckets(flat, PUSHED_ELEMENTS, self._complete)
        self._begun: Future[bool] | None = None
        self._gradient = flat.gradient  # of this push: it is checked when it is read
        self._written: list[Future[None]] = []

    def begin(self) -> None:
        """Call before the backward pass that completes the gradient."""
        self._written = []
        self._gradient = self._flat.gradient
        self._begun = self._executor.submit(self._client.begin_push)
        self._buckets.arm()

    def end(self, record: PushRecord) -> "Future[bool]":
        """The gradient is complete: push what is left, then the record. False if training has ended.

        After `Client.place_gradients`, another vector has taken the gradient's place when this returns.
        """
        if not self._buckets.is_armed:
            self.begin()
        assert self._begun is not None
        left = self._buckets.disarm()
        if record.num_tokens:
            self._written += [self._submit(self._buckets.bounds[number]) for number in left]
        else:
            self._client.abandon(self._gradient)
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
        begun, gradient = self._begun, self._gradient
        assert begun is not None
        # Begun here, after the computation of the bucket; the thread waits for it.
        wait = self._client.stage(gradient, bucket)

        def write() -> None:
            if begun.result():
                wait()
                self._client.write(gradient, bucket)

        return self._executor.submit(write)

    def _complete(self, number: int) -> None:
        self._written.append(self._submit(self._buckets.bounds[number]))
