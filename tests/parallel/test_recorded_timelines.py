"""What ranks do when, as real jobs record it (logging.timeline)."""

from collections import Counter

import numpy as np
import pytest
from tiny_training import Trainer

from hpcasync.report.spans import ACTIVITIES, Spans, read_timelines


def counts(spans: Spans) -> Counter[str]:
    return Counter(ACTIVITIES[index] for index in spans.activity)


def test_asynchronous_ranks_record_every_push_and_every_update(trainer: Trainer) -> None:
    run = trainer(4, "logging.timeline=true", "roles.servers=2", "accumulate.global=2")
    coordinator, follower, *workers = read_timelines(run.path)
    summary = run.summary
    assert coordinator.is_server and follower.is_server and [w.is_server for w in workers] == [False, False]
    for server in (coordinator, follower):
        done = counts(server)
        assert done["apply"] == summary["num_updates"]
        assert done["accumulate"] + done["drop"] == summary["gradients_pushed"]
        versions = server.detail[server.activity == ACTIVITIES.index("apply")]
        assert list(versions) == list(range(1, summary["num_updates"] + 1))
    histogram: Counter[int] = sum(coordinator.staleness.values(), Counter())
    assert {str(staleness): number for staleness, number in histogram.items()} == summary["staleness"]["histogram"]
    assert sum(counts(worker)["push"] for worker in workers) >= summary["gradients_pushed"]
    for worker in workers:
        # On a busy machine the other one may have done all there was.
        assert {"compute", "push", "wait", "pull"} <= counts(worker).keys() or not counts(worker)["compute"]
        # A rank does one thing at a time.
        assert (worker.start[1:] >= (worker.start + worker.duration)[:-1] - 2e-6).all()


def test_synchronous_ranks_record_allreduces_and_a_resumed_run_goes_on(trainer: Trainer) -> None:
    pytest.importorskip("horovod.torch", reason="mode sync needs Horovod")
    settings = ("mode=sync", "logging.timeline=true", "stop.epochs=0")
    first = trainer(2, *settings, "stop.updates=4")
    before = [spans.end for spans in read_timelines(first.path)]
    run = trainer(2, *settings, "stop.updates=7", flags=["--resume"])
    ranks = read_timelines(run.path)
    assert len(ranks) == 2
    for spans, end in zip(ranks, before, strict=True):
        done = counts(spans)
        assert done["apply"] == 7 and done["allreduce"] == 7 and done["compute"] == 7
        # The second start's spans lie behind those of the first.
        assert (spans.start >= end).sum() >= 9 and np.all(np.diff(spans.start) >= 0)


def test_nothing_is_recorded_unless_asked_for(trainer: Trainer) -> None:
    run = trainer(2, "mode=async", "stop.epochs=0", "stop.updates=2")
    assert list(run.path.glob("timeline-*")) == []
