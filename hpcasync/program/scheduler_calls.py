"""A program's own calls of `scheduler.step()`: they do nothing, and tell whether the servers' steps come then, too."""

from collections import defaultdict

from hpcasync.errors import UserError

_PER_STEP = ("step", "batch")


class SchedulerCalls:
    """Compares them with `schedule_per`: a schedule of epochs that goes by steps is over in the first of them.

    Args:
        per: when the servers step the schedulers (`schedule_per`).
    """

    def __init__(self, per: str) -> None:
        self._per = per
        self._num_steps = 0
        self._epoch = -1
        # At the last call of each scheduler.
        self._before: dict[int, tuple[int, int]] = defaultdict(lambda: (0, -1))

    def after_step(self, epoch: int) -> None:
        """The program has made a step of the optimizer, with batches from this epoch on."""
        self._num_steps += 1
        self._epoch = epoch

    def note(self, scheduler: int) -> None:
        """The program has called the step of the scheduler of this number.

        Raises:
            UserError: it does so at other times than the servers will.
        """
        num_steps, epoch = self._before[scheduler]
        made = self._num_steps - num_steps
        if not made:
            return
        self._before[scheduler] = self._num_steps, self._epoch
        if made > 1 and self._per in _PER_STEP:
            raise UserError(
                f"scheduler.step() after {made} steps of the optimizer, and the servers step the scheduler for each "
                f"{self._per} (schedule_per={self._per}): say hpcasync.join(…, schedule_per='epoch') if that is once "
                "an epoch; or make the schedule one of steps"
            )
        if self._epoch == epoch and self._per == "epoch":
            raise UserError(
                "scheduler.step() twice in an epoch, and the servers step the scheduler once (schedule_per=epoch): say "
                "hpcasync.join(…, schedule_per='step') if that is for each step of the optimizer"
            )
