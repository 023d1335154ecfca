"""The records of a run, as they begin each time that it starts."""

from collections.abc import Iterable

from hpcasync.comm.roles import Roles
from hpcasync.config.schema import RunConfig
from hpcasync.train.records.console import Console
from hpcasync.train.records.recorder import Recorder
from hpcasync.train.records.trackers import trackers_of
from hpcasync.train.records.versions import collect_versions


def begin_records(
    config: RunConfig,
    roles: Roles,
    header: Iterable[str],
    checkpoint: object,
    *,
    batches_per_epoch: int,
    unit: tuple[str, str],
    **facts: object,
) -> Recorder:
    """Open them, say what begins, and record it."""
    console = Console(config.stop, batches_per_epoch, unit)
    recorder = Recorder(
        config.output_dir,
        console,
        every=config.logging.every,
        trackers=trackers_of(config, console.line),
        batches_per_epoch=batches_per_epoch,
    )
    for line in header:
        recorder.say(line)
    if checkpoint is not None:
        recorder.note(f"resuming from {checkpoint}")
    recorder.event(
        "start", configuration=config.to_dict(), versions=collect_versions(), roles=roles.describe(), **facts
    )
    return recorder
