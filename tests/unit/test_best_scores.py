"""Which snapshot is the best, when there is no better one any more, and which are kept."""

import math
from pathlib import Path
from typing import Any

import pytest
from supervised_run import Run, Scores, end_of, names, scored

from hpcasync.complete_files import list_complete
from hpcasync.runs.files import read_state
from hpcasync.runs.records import read_validations
from hpcasync.runs.run_state import RunState
from hpcasync.runs.scores import BestScore
from hpcasync.train.supervise import snapshots as module

pytestmark = pytest.mark.usefixtures("plain_output")


def test_best_and_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Scorer", Scores)
    run = Run(tmp_path, validation={"every": 1}, stop={"patience": 2})
    scorer = run.supervisor._snapshots._scorer
    assert isinstance(scorer, Scores)
    run.update(4)
    best = tmp_path / "best"
    for number, bleu, is_over, expected in ((1, 10.0, False, 1), (2, 30.0, False, 2), (3, 20.0, False, 2)):
        scorer.ready.append(scored(number, bleu, 1.0))
        assert run.supervisor.should_stop() == is_over
        assert best.read_text() == f"snapshots/u{expected:08d}\n"
    assert scorer.submitted == [f"u{number:08d}" for number in (1, 2, 3, 4)]
    scorer.ready += [{"error": "the scoring process ended with code 1", "num_unscored": 1}]
    assert not run.supervisor.should_stop(), "what was not scored does not count"
    scorer.ready.append(scored(4, 29.9, 1.0))
    assert run.supervisor.should_stop()
    assert run.supervisor.stop_reason == "stop.patience=2 validations without improvement"
    assert [record["is_best"] for record in run.records("validation")] == [True, True, False, False]
    assert "1 snapshot(s) not scored; training goes on" in run.records("note")[0]["text"]


def test_the_best_loss_is_the_lowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Scorer", Scores)
    run = Run(tmp_path, validation={"every": 1, "metric": "loss"})
    scorer = run.supervisor._snapshots._scorer
    assert isinstance(scorer, Scores)
    scorer.ready += [scored(1, 1.0, math.nan), scored(2, 1.0, 3.0), scored(3, 2.0, 2.0), scored(4, 9.0, 2.5)]
    run.supervisor.should_stop()
    assert (tmp_path / "best").read_text() == "snapshots/u00000003\n"


def test_the_best_of_a_resumed_run_comes_from_its_records() -> None:
    records = [scored(10, 5.0, 4.0), scored(20, 8.0, 3.0), scored(30, 7.0, 2.0), scored(40, 9.0, 1.0)]
    best = BestScore.of_records(records, "bleu", 30)
    assert (best.name, best.value, best.num_stalled) == ("u00000020", 8.0, 1)
    assert BestScore.of_records(records, "loss", 30).name == "u00000030"
    # After a crash and a resumption, 20 was scored again: the parameters of that name are now others.
    assert BestScore.of_records([*records, scored(20, 1.0, 9.0)], "bleu", 30).name == "u00000030"
    none = BestScore.of_records([], "bleu", 30)
    assert (none.name, none.num_stalled) == ("", 0)


def test_ties_are_decided_by_loss() -> None:
    """BLEU stays at 0.00 for a while where a run begins, and the loss falls."""
    best = BestScore()
    for number, (bleu, loss) in enumerate([(0.0, 6.0), (0.001, 5.0), (0.0, 4.0), (0.0, 4.5)], start=1):
        assert best.update(scored(number, bleu, loss)) == (number < 4)
    assert (best.name, best.num_stalled) == ("u00000003", 1)
    assert not best.update(scored(5, 0.004, 4.0)), "the same score and the same loss"
    assert best.update(scored(6, 0.02, 9.0))
    diverged = [scored(1, 0.0, math.nan), scored(2, 0.0, 3.0), {**scored(3, 0.0, 1.0), "loss": None}]
    assert BestScore.of_records(diverged, "bleu", 3).name == "u00000002"


def test_a_snapshot_made_because_the_run_ended_is_no_validation() -> None:
    """It may be the best, but for patience the run is as if it had not ended."""
    at_end = {**scored(25, 9.0, 1.0), "is_due": False}
    records = [scored(10, 5.0, 4.0), scored(20, 4.0, 4.0), at_end, scored(30, 6.0, 4.0)]
    best = BestScore.of_records(records, "bleu", 20)
    assert (best.name, best.num_stalled) == ("u00000010", 1)
    assert best.update(at_end) and best.num_stalled == 1
    assert not best.update(scored(30, 6.0, 4.0)), "it is the best validation, but not the best snapshot"
    assert (best.name, best.num_stalled) == ("u00000025", 0)


def test_a_run_that_patience_has_ended_is_over_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Scorer", Scores)
    sections: dict[str, Any] = {"validation": {"every": 2}, "stop": {"updates": 9, "patience": 2}}
    run = Run(tmp_path, **sections)
    run.update(7)
    run.supervisor._snapshots._scorer.ready += [scored(2, 5.0, 1.0), scored(4, 4.0, 1.0), scored(6, 4.0, 1.0)]  # type: ignore[union-attr]
    assert run.supervisor.should_stop()
    run.save(run.supervisor.final_request())
    late = {**scored(7, 6.0, 1.0), "is_due": False}
    assert read_state(tmp_path / "snapshots" / "u00000007")["is_due"] is False
    assert read_state(tmp_path / "snapshots" / "u00000006")["is_due"] is True
    run.supervisor._snapshots._scorer.ready += [late]  # type: ignore[union-attr]
    run.supervisor._snapshots._pending = []
    run.supervisor.should_stop()
    run.supervisor.report_end(end_of(run))

    def resume(patience: int) -> Run:
        best = BestScore.of_records(read_validations(tmp_path), "bleu", 7)
        state = RunState.from_dict(read_state(tmp_path / "checkpoints" / "u00000007"), best)
        return Run(tmp_path, state=state, validation={"every": 2}, stop={"updates": 9, "patience": patience})

    for _ in range(2):
        resumed = resume(2)
        assert resumed.supervisor.should_stop() and resumed.supervisor.final_request() is None
        assert resumed.supervisor.stop_reason == "stop.patience=2 validations without improvement"
        resumed.supervisor.report_end(end_of(resumed))
    assert not resume(3).supervisor.should_stop(), "more patience, and it goes on"


def test_old_snapshots_are_removed_but_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Scorer", Scores)
    run = Run(tmp_path, validation={"every": 1, "keep": 1}, checkpoint={"keep": 1})
    scorer = run.supervisor._snapshots._scorer
    assert isinstance(scorer, Scores)
    for number, bleu in enumerate([3.0, 9.0, 4.0, 5.0], start=1):
        run.update()
        run.supervisor._snapshots.wait_for_files()
        scorer.ready.append(scored(number, bleu, 1.0))
        run.supervisor.should_stop()
    run.update()
    run.supervisor._snapshots.wait_for_files()
    assert names(list_complete(tmp_path / "snapshots")) == ["u00000002", "u00000005"]
    assert names(list_complete(tmp_path / "checkpoints")) == ["u00000002", "u00000005"]
