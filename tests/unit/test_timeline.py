"""What a rank writes of its time, and what is read of it."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from recorded_runs import write_timeline

from hpcasync.errors import UserError
from hpcasync.report.spans import ACTIVITIES, activity_shares, read_timelines, totals
from hpcasync.timeline import Timeline, TimelineFile, timeline_path


def open_timeline(run_dir: Path, rank: int = 1) -> TimelineFile:
    return TimelineFile(run_dir, rank=rank, role="worker", index=0, host="node1")


def test_spans_are_written_with_their_details_and_read_again(tmp_path: Path) -> None:
    timeline = open_timeline(tmp_path)
    with timeline.span("compute"):
        time.sleep(0.02)
    with timeline.span("apply", version=3, staleness=[(0, 2), (1, 0)]):
        pass
    timeline.close()
    (spans,) = read_timelines(tmp_path)
    assert [ACTIVITIES[index] for index in spans.activity] == ["compute", "apply"]
    assert spans.start[0] == 0.0 and spans.duration[0] >= 0.02 and spans.start[1] >= spans.duration[0]
    assert list(spans.detail) == [-1, 3]
    assert spans.staleness == {0: {2: 1}, 1: {0: 1}}
    assert spans.name == "worker 0 · rank 1 · node1" and not spans.is_server


def test_a_span_that_an_exception_ends_is_recorded(tmp_path: Path) -> None:
    timeline = open_timeline(tmp_path)
    with pytest.raises(RuntimeError, match="boom"), timeline.span("push"):
        raise RuntimeError("boom")
    timeline.close()
    assert len(read_timelines(tmp_path)[0].start) == 1


def test_without_a_record_nothing_is_written(tmp_path: Path) -> None:
    timeline = Timeline()
    with timeline.span("compute", version=1):
        pass
    timeline.close()
    assert list(tmp_path.iterdir()) == [] and read_timelines(tmp_path) == []


def test_a_resumed_rank_appends_after_what_a_crash_left(tmp_path: Path) -> None:
    first = open_timeline(tmp_path)
    with first.span("compute"):
        pass
    first.close()
    with timeline_path(tmp_path, 1).open("a") as file:
        file.write('["push",1.0')
    second = open_timeline(tmp_path)
    with second.span("pull"):
        pass
    second.close()
    (spans,) = read_timelines(tmp_path)
    assert [ACTIVITIES[index] for index in spans.activity] == ["compute", "pull"]
    assert spans.start[1] > spans.start[0]


def test_an_unwritable_file_ends_the_record_with_a_warning_and_not_the_training(tmp_path: Path) -> None:
    timeline = open_timeline(tmp_path / "absent")
    with timeline.span("compute"):
        pass
    with pytest.warns(UserWarning, match="the timeline ends here"):
        timeline.close()
    with timeline.span("compute"):
        pass
    timeline.close()


def test_ranks_share_a_time_axis_and_servers_come_first(tmp_path: Path) -> None:
    write_timeline(tmp_path, 1, "worker", 0, 1000.0, [["compute", 1.0, 2.0]])
    write_timeline(tmp_path, 0, "server", 0, 1000.5, [["accumulate", 2.0, 0.25, {"worker": 0}]])
    server, worker = read_timelines(tmp_path)
    assert server.is_server and server.rank == 0 and worker.rank == 1
    assert worker.start[0] == 0.0 and server.start[0] == 1.5 and server.end == 1.75
    assert server.detail[0] == 0


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_timeline(tmp_path, 0, "worker", 0, 0.0, [["compute", 0.0, 1.0], ["wait"], ["pull", 2.0, 1.0]])
    with pytest.raises(UserError, match=r"timeline-0000\.jsonl, line 4 is no span"):
        read_timelines(tmp_path)


def test_an_activity_without_a_name_here_is_other(tmp_path: Path) -> None:
    write_timeline(tmp_path, 0, "worker", 0, 0.0, [["dance", 0.0, 1.0]])
    assert [ACTIVITIES[index] for index in read_timelines(tmp_path)[0].activity] == ["other"]


def test_shares_of_time_per_bin(tmp_path: Path) -> None:
    write_timeline(tmp_path, 0, "worker", 0, 0.0, [["compute", 0.0, 1.5], ["wait", 1.5, 0.5], ["compute", 3.0, 1.0]])
    (spans,) = read_timelines(tmp_path)
    shares = activity_shares(spans, np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert shares[ACTIVITIES.index("compute")] == pytest.approx([1.0, 0.5, 0.0, 1.0])
    assert shares[ACTIVITIES.index("wait")] == pytest.approx([0.0, 0.5, 0.0, 0.0])
    assert totals(spans, 4.0) == pytest.approx({"compute": 0.625, "wait": 0.125})


def test_the_file_is_lines_of_json(tmp_path: Path) -> None:
    timeline = open_timeline(tmp_path)
    with timeline.span("accumulate", worker=7):
        pass
    timeline.close()
    facts, span = (json.loads(line) for line in timeline_path(tmp_path, 1).read_text().splitlines() if line)
    assert facts["role"] == "worker" and facts["rank"] == 1 and facts["opened"] == pytest.approx(time.time(), abs=60)
    assert span[0] == "accumulate" and span[3] == {"worker": 7}
