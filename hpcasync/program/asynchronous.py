"""A program's job in the asynchronous modes: what a server does in place of the loop, and a worker around it."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from hpcasync.comm.mpi import collectively
from hpcasync.comm.shards import Shard
from hpcasync.deaths.policy import Deaths
from hpcasync.program.buffer_means import changed_buffers
from hpcasync.program.messages import Messages
from hpcasync.program.run import ProgramRun
from hpcasync.program.serving import BufferTeller, ProgramObserver
from hpcasync.program.worker import Worker
from hpcasync.ps.engine import Engine
from hpcasync.runs.checkpoints import ShardWriter
from hpcasync.timeline import Timeline
from hpcasync.train.engine_options import engine_options
from hpcasync.train.modes.asynchronous import AsynchronousExchange

# Of the run: learning is fastest there, and staleness costs most (docs/staleness.md).
_FRESH_PART = 0.1


def make_engine(run: ProgramRun, deaths: Deaths, timeline: Timeline) -> Engine:
    """The engine of a run, at the version that it goes on from (collective)."""
    config = run.config
    engine = Engine(
        run.comm,
        run.flat.parameters,
        run.schedule.groups(run.flat),
        engine_options(config, len(run.roles.worker_ranks), fresh_updates=_fresh_updates(run)),
        roles=run.roles,
        version=run.state.counters.num_updates,
        counts=run.state.counts,
        timeline=timeline,
        server_device=run.resources.server_device,
        on_start=deaths.begin,
    )

    def load(shard: Shard) -> Any:
        tensors = run.read_shard(shard)
        assert tensors is not None
        return tensors

    collectively(run.comm, lambda: engine.load(load) if run.checkpoint is not None else None)
    assert config.num_servers == len(run.roles.server_ranks)
    return engine


def _fresh_updates(run: ProgramRun) -> int:
    """First updates that workers wait for."""
    config = run.config
    if config.fresh_updates is not None:
        return config.fresh_updates
    pushes = config.pushes_per_update(len(run.roles.worker_ranks))
    if pushes == 1:
        return 0  # every push is an update: to wait for it is to wait for nobody
    per_epoch = run.plan.num_batches() / (pushes * config.accumulate.local)  # of a stream nobody knows it: 0
    return round(_FRESH_PART * (config.stop.updates or config.stop.epochs * per_epoch))


class ServerPart:
    """A server: it has no batches, and serves until training ends.

    Args:
        engine, run, deaths: of the job.
        messages: from the workers.
    """

    def __init__(self, engine: Engine, run: ProgramRun, deaths: Deaths, messages: Messages) -> None:
        self._engine = engine
        self._run = run
        self._deaths = deaths
        self._messages = messages
        self._exit_code = 0
        self._observer: ProgramObserver | None = None

    def batches(self) -> Iterator[Any]:
        """None."""
        run = self._run
        writer = ShardWriter(run.config.output_dir / "checkpoints", run.config.num_servers)
        if not self._engine.is_coordinator:
            self._engine.serve(None, writer)
            return iter(())
        supervisor = run.supervise(writer, run.config.num_servers)
        self._observer = ProgramObserver(supervisor, run.roles, self._deaths, run, self._messages)
        self._engine.serve(self._observer, writer)
        self._observer.hear_the_rest()
        run.end(supervisor)
        self._exit_code = supervisor.exit_code
        self._deaths.ended(self._exit_code)
        return iter(())

    def end(self) -> int:
        """All ranks have ended: they get the last version. Returns the job's exit code."""
        exit_code = self._engine.close(self._exit_code)
        final = None if self._observer is None else self._observer.final
        self._run.give_final(final, exit_code)
        return exit_code

    def tell_scores(self, scores: dict[str, float]) -> None:
        """A server's module is of no version."""

    def ask_to_stop(self) -> None:
        """Only workers ask."""


class WorkerPart:
    """A worker: pulls, is dealt batches, pushes.

    Args:
        engine, run: of the job.
        worker: what the program's steps do.
        timeline: records pushes, waits and pulls.
        messages: to the coordinator.
    """

    def __init__(self, engine: Engine, run: ProgramRun, worker: Worker, timeline: Timeline, messages: Messages) -> None:
        self._engine = engine
        self._run = run
        self._worker = worker
        self._messages = messages
        self._index = run.roles.worker_ranks.index(run.comm.rank)
        self._exchange = AsynchronousExchange(engine.client, run.flat, run.order, timeline)
        self._teller = BufferTeller(run.flat.buffers.changed, self._tell_buffers)
        worker.after_step = self._after_step

    def batches(self) -> Iterator[Any]:
        """Those that fall to this worker."""
        client, order, plan = self._engine.client, self._run.order, self._run.plan
        own = count(self._index, len(self._run.roles.worker_ranks))
        self._engine.start()

        def draw() -> int | None:
            return None if client.should_stop() else order.ticket(next(own) if plan.is_split else client.draw())

        yield from self._worker.batches(plan.dealt(draw), self._exchange)

    def end(self) -> int:
        """Push what is left, say goodbye, and take the last version. Returns the job's exit code."""
        self._worker.end()
        self._teller.now()
        self._exchange.close()
        self._messages.end(self._index)
        exit_code = self._engine.close()
        self._run.give_final(None, exit_code)
        return exit_code

    def tell_scores(self, scores: dict[str, float]) -> None:
        """Have them recorded, of the version that the module has."""
        self._messages.tell(self._index, {"version": self._worker.version, "scores": scores})

    def ask_to_stop(self) -> None:
        """The program has had enough."""
        self._messages.tell(self._index, {"stop": True})

    def _after_step(self) -> None:
        self._run.schedule.rate(self._exchange.version + 1)  # the program may show its optimizer's learning rate
        if self._run.flat.buffers.layout:
            self._teller.after_step()

    def _tell_buffers(self, names: list[str]) -> None:
        arrays = changed_buffers(self._run.model, names)
        self._messages.tell(self._index, {"buffers": arrays, "weight": self._engine.client.num_pushed})
