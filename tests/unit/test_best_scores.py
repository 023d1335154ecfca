"""Which snapshot is the best, when there is no better one any more, and which are kept."""

import math
from pathlib import Path

import pytest
from supervised_run import Run, Scores, names, scored

from hpcasync.runs.files import list_complete
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
    assert BestScore.of_records([], "bleu", 30) == BestScore()


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
