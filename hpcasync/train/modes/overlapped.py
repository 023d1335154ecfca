"""Workers whose transfers run beside their computation (exchange.overlap)."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.working import DRAWS_AHEAD
from hpcasync.ps.worker.bucketed_push import GradientStream
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.timeline import Timeline
from hpcasync.train.loop.batch_order import TicketOrder
from hpcasync.train.modes.asynchronous import AsynchronousExchange


class PushOverlappedExchange(AsynchronousExchange):
    """Pushes buckets of the gradient while backward makes the rest; waits and pulls as without overlap."""

    def __init__(self, client: Client, flat: FlatParameters, batches: TicketOrder, timeline: Timeline) -> None:
        super().__init__(client, flat, batches, timeline)
        # A thread begins on the first GPU; where MPI takes GPU memory it looks which one the thread is on.
        device = flat.parameters.device
        use = torch.get_device_module(device).set_device
        self._executor = ThreadPoolExecutor(1, "transfer", initializer=use, initargs=(device,))
        self._stream = GradientStream(client, flat, self._executor)

    def expect_gradient(self) -> None:
        self._stream.begin()

    def _push(self, gradient: torch.Tensor, record: PushRecord) -> bool:
        return self._stream.end(record).result()

    def close(self) -> None:
        self._executor.shutdown()
        super().close()


class OverlappedExchange(PushOverlappedExchange):
    """Pushes and pulls while the next gradient is being computed; gradients are one update staler for it.

    Not during a fresh start: there it computes when it has pulled.
    Two parameter vectors take turns, and gradients: the computation has one of each, the transfer another.
    """

    _NUM_GRADIENTS = 2

    def __init__(self, client: Client, flat: FlatParameters, batches: TicketOrder, timeline: Timeline) -> None:
        super().__init__(client, flat, batches, timeline)
        self._other_parameters = torch.empty_like(flat.parameters)
        self._transfer: Future[tuple[int, list[int | None]] | None] | None = None
        self._has_parameters = False
        # Not where workers may die: there others rely on pushes in the order of draws.
        self._draws_ahead = not client.working.may_lose_workers

    def push(self, gradient: torch.Tensor, record: PushRecord) -> None:
        """Hand the gradient to the thread, and take what the transfer before has brought."""
        if not record.tickets:
            self.rest()
            return
        with self._timeline.span("wait"):
            self._collect()
        while self._draws_ahead and len(self._ahead) < DRAWS_AHEAD:
            self._ahead.append(self.draw_ahead())
        pushed = self._stream.end(record)
        self._transfer = self._executor.submit(self._wait_and_pull, pushed, self._other_parameters)
        if not self._client.working.computes_ahead(self._version):
            with self._timeline.span("wait"):
                self._collect()

    def pull(self, parameters: torch.Tensor) -> None:
        """The first time pull; then `push` has put the newest parameters that are there in place."""
        if not self._has_parameters:
            super().pull(parameters)
            self._has_parameters = True

    def rest(self) -> bool:
        """Complete the last push first; pull when there is something to do again."""
        self._collect()
        self._has_parameters = False
        return super().rest()

    def close(self) -> None:
        self._collect()
        super().close()

    def draw(self) -> int | None:
        """What has been drawn is taken without a look whether training has ended: it would wait for the push."""
        if self._draws_ahead and self._ahead:
            return self._ahead.popleft()
        return super().draw()

    def next_ticket(self) -> int | None:
        if not self._draws_ahead:
            return super().next_ticket()
        return self._ahead[0] if self._ahead else None

    def _wait_and_pull(self, pushed: "Future[bool]", parameters: torch.Tensor) -> tuple[int, list[int | None]] | None:
        """Returns the version in `parameters`, and what was drawn for later; None if training has ended."""
        if not pushed.result() or not self._client.wait():
            return None
        version = self._client.pull(parameters)
        return version, [self.draw_ahead()] if self._draws_ahead else []

    def _collect(self) -> None:
        """Wait for the transfer of the gradient before; swap its parameters in."""
        if self._transfer is None:
            return
        transferred, self._transfer = self._transfer.result(), None
        if transferred is None:
            self._is_finished = True
            return
        version, drawn = transferred
        self._ahead.extend(drawn)
        if version != self._version:
            parameters = self._flat.parameters
            self._flat.use_parameters(self._other_parameters)
            self._other_parameters, self._version = parameters, version
