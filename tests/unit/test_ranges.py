"""Activities as ranges of profilers (logging.ranges)."""

import json
from pathlib import Path

import pytest
import torch

from hpcasync.errors import UserError
from hpcasync.timeline import Timeline
from hpcasync.train.records.ranges import with_ranges


def test_some_steps_are_recorded_with_their_activities(tmp_path: Path) -> None:
    timeline = with_ranges("torch", Timeline(), tmp_path, 3)
    for _ in range(25):
        with timeline.span("compute"):
            torch.ones(8) @ torch.ones(8)
        with timeline.span("push"):
            pass
    timeline.close()
    events = json.loads((tmp_path / "profile-0003.json").read_text())["traceEvents"]
    spans = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert spans.count("compute") == spans.count("push") == 8
    assert any(event["name"] == "aten::dot" for event in events)


def test_nothing_is_wrapped_by_default(tmp_path: Path) -> None:
    timeline = Timeline()
    assert with_ranges("none", timeline, tmp_path, 0) is timeline


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has NVTX")
def test_nvtx_without_cuda_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"logging\.ranges=nvtx: this torch is built without CUDA.*logging\.ranges=torch"
    ):
        with_ranges("nvtx", Timeline(), tmp_path, 0)
