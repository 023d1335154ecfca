"""Scoring beside training: scores come in order, and a process that dies costs scores but no training."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_run import NAMES, TinyRun

from hpcasync.train.supervise.scorer import Scorer


def wait_for(scorer: Scorer, number: int, seconds: float = 240.0) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    deadline = time.monotonic() + seconds
    while len(results) < number:
        results += scorer.poll()
        assert time.monotonic() < deadline, results
        time.sleep(0.01)
    return results


def replace_child(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Run other Python source as the child process."""
    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        assert command[:3] == [sys.executable, "-m", "hpcasync.train.supervise.scorer_process"]
        return start([sys.executable, "-c", source], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


def test_real_snapshots_are_scored_in_order(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")  # the child must not take itself for a rank
    scorer = Scorer(tiny_run.run_dir)
    assert scorer.poll() == [] and scorer.num_pending == 0
    scorer.submit(NAMES[0])
    scorer.submit(NAMES[-1])
    assert scorer.num_pending == 2
    first, last = wait_for(scorer, 2)
    assert scorer.num_pending == 0
    assert (first["name"], last["name"]) == (NAMES[0], NAMES[-1])
    assert last["loss"] < first["loss"] and last["bleu"] > first["bleu"]
    assert {"perplexity", "chrf", "num_updates", "wall_seconds", "bleu_signature"} <= set(last)
    scorer.close()


def test_a_child_that_dies_is_reported_once_and_started_again(tiny_run: TinyRun) -> None:
    scorer = Scorer(tiny_run.run_dir)
    scorer.submit("u00000001-absent")
    scorer.submit(NAMES[0])
    (report,) = wait_for(scorer, 1)
    assert report["error"].startswith("the scoring process ended with code") and report["num_unscored"] == 2
    assert scorer.num_pending == 0 and scorer.poll() == []
    scorer.submit(NAMES[0])
    assert wait_for(scorer, 1)[0]["name"] == NAMES[0]
    scorer.close()


def test_scores_that_came_before_the_end_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_child(monkeypatch, "import json; print(json.dumps({'name': input()}), flush=True); raise SystemExit(7)")
    scorer = Scorer(tmp_path)
    scorer.submit("a")
    scorer.submit("b")
    first, second = wait_for(scorer, 2)
    assert first == {"name": "a"}
    assert second == {"error": "the scoring process ended with code 7", "num_unscored": 1}
    scorer.close()


def test_a_child_that_died_while_it_had_nothing_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_child(monkeypatch, "import json; print(json.dumps({'name': input()}), flush=True)")
    scorer = Scorer(tmp_path)
    scorer.submit("a")
    wait_for(scorer, 1)
    assert scorer._process is not None
    scorer._process.wait()
    for _ in range(3):
        scorer.submit("b")
        (result,) = wait_for(scorer, 1)
        assert result.get("name") == "b" or result["error"] == "the scoring process ended with code 0"
    scorer.close()


def test_a_child_that_is_not_needed_is_not_started(tmp_path: Path) -> None:
    scorer = Scorer(tmp_path)
    assert scorer._process is None
    scorer.close()


def test_close_does_not_wait_for_scores(tiny_run: TinyRun) -> None:
    """The real child ends at once when its input does, also in the middle of a search."""
    scorer = Scorer(tiny_run.run_dir)
    for _ in range(1000):
        scorer.submit(NAMES[-1])
    num_scored = len(wait_for(scorer, 1))
    scorer.close()
    assert scorer._reader is not None
    scorer._reader.join()
    assert num_scored + len(scorer._results) < 1000
