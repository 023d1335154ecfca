"""A server's part in a program's job; the coordinator's with what workers tell beside their gradients."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from hpcasync.comm.roles import Roles
from hpcasync.deaths.policy import Deaths
from hpcasync.program.buffer_means import BufferMeans, kept_arrays, to_json
from hpcasync.program.messages import Messages, Told, heed
from hpcasync.program.task import BUFFERS_KEY, ProgramTask
from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.train.modes.asynchronous import CoordinatorObserver
from hpcasync.train.supervise.supervisor import Supervisor

_LISTEN_SECONDS = 0.1


class ProgramObserver(CoordinatorObserver):
    """The coordinator's view of a run, with what its workers tell.

    Attributes:
        final: [num_elements] parameters of the last version, averaged where there is an average; None where the run is
            to go on later.
    """

    def __init__(
        self, supervisor: Supervisor, roles: Roles, deaths: Deaths, task: ProgramTask, messages: Messages
    ) -> None:
        super().__init__(supervisor, roles, deaths)
        self._task = task
        self._roles = roles
        self._messages = messages
        self._buffers = BufferMeans()
        self._listened = 0.0
        self._gone: set[int] = set()
        self.final: torch.Tensor | None = None
        supervisor.snapshot_buffers = self._all_buffers
        supervisor.checkpoint_buffers = lambda: {BUFFERS_KEY: to_json(self._buffers.mean())}

    def should_stop(self) -> bool:
        """By the configuration; listens to the workers, too."""
        if time.monotonic() - self._listened >= _LISTEN_SECONDS:
            self._heed(self._messages.arrived())
            self._listened = time.monotonic()
        return super().should_stop()

    def final_request(self) -> SaveRequest | None:
        """All ranks get the last version, whatever has been saved of it."""
        # The workers' last words, if they have finished; they need not have where training was stopped.
        all_finished = len(self._gone) == len(self._roles.worker_ranks)
        self._heed(self._messages.rest() if all_finished else self._messages.arrived())
        request = super().final_request()
        if self._supervisor.ending.exit_code or (request is not None and request.snapshot):
            return request
        return SaveRequest(self._supervisor.name, snapshot=True, checkpoint=request is not None and request.checkpoint)

    def after_finish(self, worker: int) -> None:
        """It tells nothing more then."""
        self._gone.add(worker)
        super().after_finish(worker)

    def after_loss(self, worker: int, *, is_last: bool) -> None:
        """Nor does who has died."""
        self._gone.add(worker)
        super().after_loss(worker, is_last=is_last)

    def save_snapshot(self, request: SaveRequest, vector: torch.Tensor) -> None:
        """Write it; the newest is what all ranks have in the end."""
        self.final = vector
        super().save_snapshot(request, vector)

    def end(self) -> None:
        """The workers have finished: what they told last."""
        self._heed(self._messages.rest())

    def _heed(self, told: Told) -> None:
        heed(told, self._supervisor, self._buffers)

    def _all_buffers(self) -> dict[str, np.ndarray]:
        kept = kept_arrays(self._task.model)
        return {**kept, **{name: array for name, array in self._buffers.mean().items() if name in kept}}


class BufferTeller:
    """Tells the coordinator of a worker's buffers, about once a second.

    Args:
        changed: names of buffers that are not what they were at first.
        tell: sends them, by their names.
    """

    _SECONDS = 1.0

    def __init__(self, changed: Callable[[], list[str]], tell: Callable[[list[str]], None]) -> None:
        self._changed = changed
        self._tell = tell
        self._told = -math.inf

    def after_step(self) -> None:
        if time.monotonic() - self._told >= self._SECONDS:
            self.now()

    def now(self) -> None:
        """Tell the newest."""
        if names := self._changed():
            self._tell(names)
        self._told = time.monotonic()
