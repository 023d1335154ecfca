"""Learning rate as a function of progress; counted in a unit that means the same in every mode."""

import math
from collections.abc import Callable

from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.config.schedule import ScheduleConfig, StopConfig
from hpcasync.config.schema import Config
from hpcasync.runs.counters import Counters


def rate_of(config: Config, batches_per_epoch: int) -> Callable[[Counters], float]:
    """`learning_rate` of a run, as a function of the counters alone."""
    schedule = in_batches(config.schedule, config.stop, batches_per_epoch)
    return lambda counters: learning_rate(config.optimizer, schedule, counters)


def in_batches(schedule: ScheduleConfig, stop: StopConfig, batches_per_epoch: int) -> ScheduleConfig:
    """The same schedule without epochs: they are as many batches as the corpus has."""
    if schedule.unit != "epochs":
        return schedule
    epochs = {"warmup": schedule.warmup, "total": schedule.total or stop.epochs}
    lengths = {key: number * batches_per_epoch for key, number in epochs.items()}
    return schedule.model_copy(update={"unit": "batches", **lengths})


def learning_rate(optimizer: OptimizerConfig, schedule: ScheduleConfig, counters: Counters) -> float:
    """The learning rate of the update that brings the counters to their present values.

    Linear warm-up to `optimizer.learning_rate` over `schedule.warmup`, then constant, falling with the inverse square
    root (Vaswani et al. 2017, section 5.3, with a free peak), or falling to zero at `schedule.total` along a half
    cosine (Loshchilov & Hutter 2017, without restarts). Epochs are counted in batches (`in_batches`).
    """
    position = {"updates": counters.num_updates, "batches": counters.num_batches, "tokens": counters.target_tokens}
    now = max(1, position[schedule.unit])
    if now < schedule.warmup:
        return optimizer.learning_rate * now / schedule.warmup
    if schedule.name == "constant":
        return optimizer.learning_rate
    if schedule.name == "inverse_sqrt":
        return optimizer.learning_rate * math.sqrt(max(1, schedule.warmup) / now)
    fraction = min(1.0, (now - schedule.warmup) / (schedule.total - schedule.warmup))
    return optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
