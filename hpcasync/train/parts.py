"""What each rank of a run does around its computation: a server, a worker of servers, or one of all in sync."""

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

from hpcasync.comm.allocator import return_freed_memory
from hpcasync.comm.mpi import require_threads
from hpcasync.comm.waiting import wait_for_all
from hpcasync.ps.engine import Engine, EngineSetup
from hpcasync.ps.server.dealt_muon import Dealing
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.train.engine_options import engine_options
from hpcasync.train.loop.exchange import Exchange
from hpcasync.train.modes.allreduce import AllreduceExchange
from hpcasync.train.modes.asynchronous import AsynchronousExchange, CoordinatorObserver
from hpcasync.train.modes.bucket_sums import BucketSums
from hpcasync.train.modes.collectives import Collectives, start_collectives
from hpcasync.train.modes.overlapped import OverlappedExchange, PushOverlappedExchange
from hpcasync.train.run import Run
from hpcasync.train.supervise.rank_watch import RankWatch
from hpcasync.train.supervise.supervisor import Supervisor

# Of a mean gradient's largest elements, in units of one: fp16 reaches to 65,504, and down to 6e-8.
_FP16_RANGE = 1 << 10
_EXCHANGES: dict[str, type[AsynchronousExchange]] = {
    "none": AsynchronousExchange,
    "push": PushOverlappedExchange,
    "full": OverlappedExchange,
}


class Part(Protocol):
    """A rank's part in a run."""

    @property
    def exchange(self) -> Exchange | None:
        """What a worker computes for; None: this rank computes nothing."""

    def start(self) -> None:
        """All ranks begin; a server serves until training ends."""

    def end(self) -> int:
        """The computation is over: take part until all have ended. Returns the job's exit code."""


P = TypeVar("P", bound=Part)


def begin(
    run: Run,
    server: Callable[[Run, Engine], P],
    worker: Callable[[Run, Engine], P],
    synchronous: Callable[[Run, Collectives], P],
) -> P:
    """Make this rank's part of a run whose directory is held (collective).

    Raises:
        UserError: on every rank, for anything that a user can cause.
    """
    ranks = run.ranks
    if not ranks.roles.server_ranks:
        collectives = start_collectives(run.config, ranks.comm, ranks.resources.device)
        run.begin_records()
        return synchronous(run, collectives)
    run.begin_records()
    engine = _make_engine(run)
    return (server if engine.is_server else worker)(run, engine)


def _make_engine(run: Run) -> Engine:
    """At the version that the run goes on from (collective)."""
    ranks, task = run.ranks, run.task
    options = engine_options(
        run.config,
        ranks.num_workers,
        server_threads=ranks.resources.server_threads,
        fresh_updates=run.fresh_updates,
        may_lose_workers=ranks.deaths.may_lose_workers,
    )
    setup = EngineSetup(
        roles=ranks.roles,
        version=run.state.counters.num_updates,
        counts=run.state.counts,
        timeline=run.timeline,
        server_device=ranks.resources.server_device,
        on_start=ranks.deaths.begin,
        carries_buffers=not ranks.deaths.may_lose_workers,
    )
    engine = Engine(ranks.comm, task.flat.parameters, task.optimizers, options, setup)
    run.load(engine.load)
    return engine


class ServerPart:
    """A server; the coordinator supervises."""

    exchange = None

    def __init__(self, run: Run, engine: Engine) -> None:
        self._run = run
        self._engine = engine
        self._exit_code = 0
        return_freed_memory()
        run.task.flat.drop_gradient()

    def start(self) -> None:
        run, engine = self._run, self._engine
        writer = run.shard_writer(run.config.num_servers)
        if not engine.is_coordinator:
            engine.serve(None, writer)
            return
        supervisor = run.supervise(writer, engine.windows)
        observer = self._observer(supervisor)
        engine.serve(observer, writer, run.survival())
        observer.end()
        supervisor.end(run.ranks.roles, servers_busy=round(engine.servers_busy, 4))
        self._exit_code = supervisor.exit_code
        run.ranks.deaths.ended(self._exit_code)

    def end(self) -> int:
        return self._engine.close(self._exit_code)

    def _observer(self, supervisor: Supervisor) -> CoordinatorObserver:
        return CoordinatorObserver(supervisor, self._run.ranks.roles, self._run.ranks.deaths)


class WorkerPart:
    """A worker of an asynchronous mode."""

    def __init__(self, run: Run, engine: Engine) -> None:
        overlap = run.config.exchange.overlap
        if overlap != "none":
            require_threads(f"exchange.overlap={overlap}")
        self._run = run
        self._engine = engine
        self.exchange = _EXCHANGES[overlap](engine.client, run.task.flat, run.task.order(run.state), run.timeline)

    def start(self) -> None:
        self._engine.start()

    def end(self) -> int:
        self.exchange.close()
        return self._engine.close()


class SynchronousPart:
    """A worker of a synchronous job, or the only one; rank 0 supervises."""

    def __init__(self, run: Run, collectives: Collectives) -> None:
        comm, config, flat = run.ranks.comm, run.config, run.task.flat
        initial = flat.parameters.cpu()
        comm.Bcast(initial.numpy())
        flat.parameters.copy_(initial)
        self._run = run
        self._collectives = collectives
        self._state = ShardState(flat.parameters, run.task.optimizers, ema_decay=config.optimizer.ema_decay)
        run.load(lambda read: self._state.load_state_tensors(read(self._state.whole)))
        self._supervisor = run.supervise(run.shard_writer(1)) if comm.rank == 0 else None
        report = None if self._supervisor is None else self._supervisor.report_event
        self._watch = RankWatch(comm, run.ranks.roles.hosts, config.logging.stall, report)
        sums = self._sums()
        # The sum of what ranks have made of the matrices takes less time than making all, unless it crosses a network.
        if comm.size > 1 and len(set(run.ranks.roles.hosts)) == 1:
            self._state.deal(Dealing(comm.rank, comm.size, sums.sum_vector))
        if report is not None and comm.size > 1:
            report("sums", f"  gradients are summed by {sums.description}", by=sums.description)
        self.exchange = AllreduceExchange(
            sums,
            self._state,
            run.task.order(run.state),
            self._supervisor,
            config=config,
            rate=run.task.rate,
            run=run.state,
            timeline=run.timeline,
        )

    def start(self) -> None:
        """Wait until all are ready. A resumed run may be at its end."""
        comm, supervisor = self._run.ranks.comm, self._supervisor
        comm.Barrier()
        if supervisor is not None:
            supervisor.start()
        if comm.bcast(supervisor is not None and supervisor.should_stop(), root=0):
            self.exchange.finish()

    def end(self) -> int:
        comm, supervisor = self._run.ranks.comm, self._supervisor
        if supervisor is not None:
            request = supervisor.final_request()
            if request is not None:
                supervisor.save_all(request, self._state)
            supervisor.end(self._run.ranks.roles)
        wait_for_all(comm)
        self._watch.close()
        self._collectives.close()
        return int(comm.bcast(0 if supervisor is None else supervisor.exit_code, root=0))

    def _sums(self) -> BucketSums:
        run, comm = self._run, self._run.ranks.comm
        weight_per_round = run.task.batch_weight * run.config.accumulate.local * comm.size
        return BucketSums(
            self._collectives,
            run.task.flat,
            comm,
            self._watch,
            during_backward=run.task.knows_last_backward,
            compression=run.config.sync.compression,
            scale=_FP16_RANGE / 2 ** math.ceil(math.log2(weight_per_round)),
        )
