"""A program's job in the asynchronous modes: what a server does in place of the loop, and a worker around it."""

from itertools import count

from hpcasync.program.final import give_last_version
from hpcasync.program.messages import Messages
from hpcasync.program.serving import BufferTeller, ProgramObserver
from hpcasync.program.task import ProgramTask
from hpcasync.program.worker import Worker
from hpcasync.ps.engine import Engine
from hpcasync.train.parts import ServerPart, WorkerPart
from hpcasync.train.run import Run
from hpcasync.train.supervise.supervisor import Supervisor


class ProgramServer(ServerPart):
    """A server: it has no batches, and serves until training ends."""

    def __init__(self, run: Run, engine: Engine, task: ProgramTask, messages: Messages) -> None:
        super().__init__(run, engine)
        self._task = task
        self._messages = messages
        self.last_version: int | None = None
        self._program: ProgramObserver | None = None

    def end(self) -> int:
        """All ranks have ended: they get the last version. Returns the job's exit code."""
        exit_code = super().end()
        self.last_version = give_last_version(
            self._run, self._task, None if self._program is None else self._program.final, exit_code
        )
        return exit_code

    def _observer(self, supervisor: Supervisor) -> ProgramObserver:
        ranks = self._run.ranks
        self._program = ProgramObserver(supervisor, ranks.roles, ranks.deaths, self._task, self._messages)
        return self._program


class ProgramWorker(WorkerPart):
    """A worker: pulls, is dealt batches, pushes."""

    def __init__(self, run: Run, engine: Engine, task: ProgramTask, messages: Messages, worker: Worker) -> None:
        super().__init__(run, engine)
        self._task = task
        self._messages = messages
        self.last_version: int | None = None
        self._worker = worker
        if task.plan.is_split:
            self.exchange.numbers = count(run.ranks.worker, run.ranks.num_workers)
        self._teller = BufferTeller(task.flat.buffers.changed, self._tell_buffers)
        worker.after_step = self._after_step

    def end(self) -> int:
        """Push what is left, say goodbye, and take the last version. Returns the job's exit code."""
        self._worker.end()
        self._teller.now()
        self.exchange.close()
        self._messages.end()
        exit_code = self._engine.close()
        self.last_version = give_last_version(self._run, self._task, None, exit_code)
        return exit_code

    def _after_step(self) -> None:
        self._task.schedule.rate(self.exchange.version + 1)  # the program may show its optimizer's learning rate
        if self._task.flat.buffers.layout:
            self._teller.after_step()

    def _tell_buffers(self, names: list[str]) -> None:
        arrays = self._task.flat.buffers.arrays(names)
        self._messages.tell({"buffers": arrays, "weight": self._engine.client.num_pushed})
