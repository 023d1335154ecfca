"""What a run of a program trains: its own module, optimizer and batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcasync.config.program import ProgramConfig
from hpcasync.errors import UserError
from hpcasync.program.buffer_means import load_into
from hpcasync.program.dealing import Plan
from hpcasync.program.schedule import Schedule
from hpcasync.ps.server.kernel_library import describe_updates
from hpcasync.ps.server.parameter_groups import ParameterGroup
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.counters import Counters
from hpcasync.runs.files import read_state
from hpcasync.runs.run_state import FreshStart, RunState
from hpcasync.train.loop.batch_order import TicketOrder
from hpcasync.train.supervise.stopping import StopRules

BUFFERS_KEY = "buffers"
# Of the run: learning is fastest there, and staleness costs most (docs/staleness.md).
_FRESH_PART = 0.1


@dataclass
class ProgramTask:
    """See `train.run.RunTask`.

    Attributes:
        config: of the run.
        model, flat, schedule: of the program.
        plan: the batches.
        ending: why there is nothing left to train in a run that goes on; empty: there is, or nobody knows.
    """

    config: ProgramConfig
    model: torch.nn.Module
    flat: FlatParameters
    schedule: Schedule
    plan: Plan
    files: Sequence[Path] = ()
    unit: tuple[str, str] = ("samples", "samples")
    ending: str = ""

    @property
    def layout(self) -> dict[str, str]:
        return {"model": self.flat.digest, "order of batches": self.plan.digest}

    @property
    def optimizers(self) -> Sequence[ParameterGroup]:
        return self.schedule.groups(self.flat)

    @property
    def rate(self) -> Callable[[Counters], float]:
        return lambda counters: self.schedule.rate(counters.num_updates)

    @property
    def batch_weight(self) -> int:
        return self.plan.batch_size

    @property
    def knows_last_backward(self) -> bool:
        return self.config.sums_during_backward

    def fresh_start(self, num_workers: int) -> FreshStart:
        config = self.config
        updates = config.fresh_updates
        if config.is_always_fresh(num_workers):
            updates = 0
        elif updates is None:
            batches = config.pushes_per_update(num_workers) * config.accumulate.local
            per_epoch = self.plan.num_batches() / batches  # of a stream nobody knows it: 0
            updates = round(_FRESH_PART * (config.stop.updates or config.stop.epochs * per_epoch))
        return FreshStart(config.fresh_updates, updates)

    def describe(self, num_workers: int, fresh_updates: int) -> Iterator[str]:
        flat, per_update = self.flat, self.config.pushes_per_update(num_workers) * self.config.accumulate.local
        yield (
            f"  model: {type(self.model).__name__}, {flat.num_trainable:,} parameters on {flat.parameters.device.type}"
        )
        yield f"  updates on CPU: {describe_updates()}"
        yield f"  {self.plan.describe()}; {per_update} batches per update"
        if fresh_updates:
            yield f"  fresh start: workers wait for the first {fresh_updates:,} updates, as in sync (fresh_updates)"
        if self.ending:
            yield (
                f"  this run was at its end ({self.ending}): nothing is left to train; give it more, or give another "
                "run, or overwrite=True"
            )

    def order(self, state: RunState) -> TicketOrder:
        return self.plan.order(state.ledger, self.config.stop.epochs)

    def go_on(self, checkpoint: Path, state: RunState) -> None:
        """Buffers, and where the schedulers are."""
        saved = read_state(checkpoint)
        mode, self.ending = saved.get("mode", self.config.mode), self._ending(state)
        if self.ending and mode != self.config.mode:
            raise UserError(
                f"{self.config.output_dir} was trained to its end ({self.ending}) in mode {mode}: nothing is left to "
                f"train in mode {self.config.mode}; give another run, or overwrite=True"
            )
        buffers: dict[str, Any] = saved.get(BUFFERS_KEY, {})
        load_into(self.model, buffers, str(checkpoint))
        if self.config.schedule_per != "update":
            self.schedule.go_on(state.counters.num_updates, state.counters.num_batches)

    def _ending(self, state: RunState) -> str:
        stop, rules = self.config.stop, StopRules(self.config.stop)
        rules.check_counters(state.counters)
        rules.check_time(state.counters.wall_seconds)
        end = stop.epochs * self.plan.num_batches()
        if rules.ending is None and end and state.ledger.low >= end:
            return f"{stop.epochs} epochs"
        return "" if rules.ending is None else rules.ending.reason
