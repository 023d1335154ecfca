"""A program's job in mode sync, and on a single rank: every worker holds all of the optimizer's state."""

from typing import Any

import torch

from hpcasync.program.buffer_means import kept_arrays, to_json
from hpcasync.program.final import give_last_version
from hpcasync.program.messages import Messages, heed
from hpcasync.program.task import BUFFERS_KEY, ProgramTask
from hpcasync.program.worker import Worker
from hpcasync.ps.start_checks import require_elementwise
from hpcasync.train.modes.collectives import Collectives
from hpcasync.train.parts import SynchronousPart
from hpcasync.train.run import Run


class ProgramSynchronous(SynchronousPart):
    """A worker of a synchronous job; rank 0 supervises."""

    def __init__(
        self, run: Run, collectives: Collectives, task: ProgramTask, messages: Messages, worker: Worker
    ) -> None:
        require_elementwise(task.optimizers, task.flat.parameters.device)
        super().__init__(run, collectives)
        self._task = task
        self._messages = messages
        self.last_version: int | None = None
        self._worker = worker
        if self._supervisor is not None:
            self._supervisor.snapshot_buffers = lambda: kept_arrays(task.model)
            self._supervisor.checkpoint_buffers = self._changed
        worker.after_step = self._listen
        if task.knows_last_backward:
            worker.begin_sum = self.exchange.expect_gradient

    def end(self) -> int:
        """Take part until all have ended, and save; all ranks get the last version. Returns the job's exit code."""
        comm = self._run.ranks.comm
        self._listen()
        self._worker.end()
        self._messages.end()
        if self._supervisor is not None:
            heed(self._messages.rest(), self._supervisor)
        exit_code = super().end()
        self.last_version = give_last_version(
            self._run, self._task, self._state.averaged.cpu() if comm.rank == 0 else None, exit_code
        )
        for buffer in self._task.model.buffers():
            values = buffer.cpu().contiguous()
            comm.Bcast(values.reshape(-1).view(torch.uint8).numpy())  # numpy has no bfloat16
            buffer.copy_(values)
        return exit_code

    def _listen(self) -> None:
        if self._supervisor is not None:
            heed(self._messages.arrived(), self._supervisor)

    def _changed(self) -> dict[str, Any]:
        buffers = self._task.flat.buffers
        return {BUFFERS_KEY: to_json(buffers.arrays(buffers.changed()))}
