"""The activities of a rank for profilers: NVTX ranges for Nsight Systems, and records of torch.profiler."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch.profiler import profile, record_function, schedule

from hpcasync.errors import UserError
from hpcasync.timeline import Timeline

# Steps: before the first that is recorded, that only warm the profiler up, that are recorded.
_WAIT, _WARM_UP, _RECORDED = 10, 2, 8


def with_ranges(kind: Literal["none", "nvtx", "torch"], timeline: Timeline, run_dir: Path, rank: int) -> Timeline:
    """A timeline whose spans are ranges of a profiler, too."""
    if kind == "none":
        return timeline
    if kind == "torch":
        return ProfiledTimeline(timeline, run_dir / f"profile-{rank:04d}.json")
    if torch.version.cuda is None:
        raise UserError(
            "logging.ranges=nvtx: this torch is built without CUDA, and without NVTX: install a CUDA build, or take "
            "logging.ranges=torch"
        )
    return NvtxTimeline(timeline)


class NvtxTimeline(Timeline):
    """Spans that are NVTX ranges, recorded where the job runs under `nsys profile`."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    @contextmanager
    def span(self, activity: str, **details: object) -> Iterator[None]:
        with torch.cuda.nvtx.range(activity), self._timeline.span(activity, **details):
            yield

    def add(self, activity: str, start: float, seconds: float, **details: object) -> None:
        self._timeline.add(activity, start, seconds, **details)

    def close(self) -> None:
        self._timeline.close()


class ProfiledTimeline(Timeline):
    """Spans within what torch.profiler records: some steps of a worker, or updates of a server, as a Chrome trace.

    Args:
        path: of the trace, written when the steps are over; of a run that ends before, at its end.
    """

    def __init__(self, timeline: Timeline, path: Path) -> None:
        self._timeline = timeline
        self._profiler = profile(
            schedule=schedule(wait=_WAIT, warmup=_WARM_UP, active=_RECORDED, repeat=1),
            on_trace_ready=lambda recorded: recorded.export_chrome_trace(str(path)),
        )
        self._profiler.start()

    @contextmanager
    def span(self, activity: str, **details: object) -> Iterator[None]:
        if activity in ("compute", "apply"):
            self._profiler.step()
        with record_function(activity), self._timeline.span(activity, **details):
            yield

    def add(self, activity: str, start: float, seconds: float, **details: object) -> None:
        self._timeline.add(activity, start, seconds, **details)

    def close(self) -> None:
        self._profiler.stop()
        self._timeline.close()
