"""A program's job in mode sync, and on a single rank: every worker holds all of the optimizer's state."""

from collections.abc import Iterator
from typing import Any

from hpcasync.comm.mpi import collectively
from hpcasync.comm.waiting import wait_for_all
from hpcasync.program.buffer_means import changed_buffers, kept_buffers, to_json
from hpcasync.program.messages import Messages
from hpcasync.program.run import BUFFERS_KEY, ProgramRun
from hpcasync.program.worker import Worker
from hpcasync.ps.server.shard_state import ShardState
from hpcasync.ps.start_checks import require_elementwise
from hpcasync.runs.checkpoints import ShardWriter
from hpcasync.timeline import Timeline
from hpcasync.train.modes.allreduce import AllreduceExchange
from hpcasync.train.modes.bucket_sums import BucketSums
from hpcasync.train.modes.collectives import Collectives
from hpcasync.train.supervise.rank_watch import RankWatch
from hpcasync.train.supervise.supervisor import Supervisor


class SynchronousPart:
    """A worker of a synchronous job; rank 0 supervises.

    Args:
        run: of the job.
        collectives: what sums gradients.
        worker: what the program's steps do.
        timeline: records sums and updates.
        messages: to rank 0.
    """

    def __init__(
        self, run: ProgramRun, collectives: Collectives, worker: Worker, timeline: Timeline, messages: Messages
    ) -> None:
        comm, config, flat = run.comm, run.config, run.flat
        self._run = run
        self._collectives = collectives
        self._worker = worker
        self._messages = messages
        groups = run.schedule.groups(flat)
        for group in groups:
            require_elementwise(group.make_optimizer, flat.parameters.device)
        initial = flat.parameters.cpu()
        comm.Bcast(initial.numpy())
        flat.parameters.copy_(initial)
        self._state = ShardState(flat.parameters, groups, ema_decay=config.optimizer.ema_decay)
        collectively(comm, self._load)
        self._supervisor: Supervisor | None = None
        if comm.rank == 0:
            self._supervisor = run.supervise(ShardWriter(config.output_dir / "checkpoints", 1), 1)
            self._supervisor.snapshot_buffers = lambda: kept_buffers(run.model)
            self._supervisor.checkpoint_buffers = self._changed
        report = None if self._supervisor is None else self._supervisor.report_event
        self._watch = RankWatch(comm, run.roles.hosts, config.logging.stall, report)
        # Gradients are means where backward makes them, and sums only when the step says what they weigh.
        sums = BucketSums(
            collectives, flat, comm, self._watch, during_backward=False, compression=config.sync.compression
        )
        if report is not None and comm.size > 1:
            report("sums", f"  gradients are summed by {sums.description}", by=sums.description)
        self._exchange = AllreduceExchange(
            sums,
            self._state,
            run.order,
            self._supervisor,
            config=config,
            rate=lambda counters: run.schedule.rate(counters.num_updates),
            run=run.state,
            timeline=timeline,
        )
        worker.after_step = self._listen

    def batches(self) -> Iterator[Any]:
        """Those that fall to this worker: all take turns."""
        comm, order, supervisor = self._run.comm, self._run.order, self._supervisor
        comm.Barrier()
        if supervisor is not None:
            supervisor.start()
        if comm.bcast(supervisor is not None and supervisor.should_stop(), root=0):
            self._exchange.finish()
        numbers = iter(range(comm.rank, 2**62, comm.size))
        dealt = self._run.plan.dealt(lambda: order.ticket(next(numbers)))
        yield from self._worker.batches(dealt, self._exchange)

    def end(self) -> int:
        """Take part until all have ended, and save. Returns the job's exit code."""
        run, supervisor, comm = self._run, self._supervisor, self._run.comm
        self._worker.end()
        if comm.rank:
            self._messages.end(comm.rank)
        exit_code = 0
        if supervisor is not None:
            for worker, what in self._messages.rest():
                self._take(worker, what)
            request = supervisor.final_request()
            if request is not None:
                supervisor.save_all(request, self._state)
            run.end(supervisor)
            exit_code = supervisor.exit_code
        wait_for_all(comm)
        self._watch.close()
        self._collectives.close()
        exit_code = int(comm.bcast(exit_code, root=0))
        averaged = self._state.parameters if self._state.ema is None else self._state.ema
        run.give_final(averaged.detach().cpu() if comm.rank == 0 else None, exit_code)
        for buffer in run.model.buffers():
            values = buffer.cpu().contiguous()
            comm.Bcast(values.numpy())
            buffer.copy_(values)
        return exit_code

    def tell_scores(self, scores: dict[str, float]) -> None:
        """Have them recorded, of the version that the module has."""
        if self._supervisor is not None:
            self._supervisor.report_scores(self._worker.version, scores)
        else:
            self._messages.tell(self._run.comm.rank, {"version": self._worker.version, "scores": scores})

    def ask_to_stop(self) -> None:
        """The program has had enough."""
        if self._supervisor is not None:
            self._supervisor.end_on_request()
        else:
            self._messages.tell(self._run.comm.rank, {"stop": True})

    def _listen(self) -> None:
        if self._supervisor is not None:
            for worker, what in self._messages.arrived():
                self._take(worker, what)

    def _take(self, worker: int, what: dict[str, Any]) -> None:
        assert self._supervisor is not None
        if "stop" in what:
            self._supervisor.end_on_request()
        else:
            self._supervisor.report_scores(what["version"], what["scores"])

    def _changed(self) -> dict[str, Any]:
        names = self._run.flat.buffers.changed()
        return {BUFFERS_KEY: to_json(changed_buffers(self._run.model, names))}

    def _load(self) -> None:
        tensors = self._run.read_shard(self._state.whole)
        if tensors is not None:
            self._state.load_state_tensors(tensors)
