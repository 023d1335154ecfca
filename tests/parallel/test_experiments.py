"""An experiment of real jobs: what has ended is left alone, what broke off goes on, a failure stops no other run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked_ranks import ForkedRanks
from runners import CliRunner
from tiny_training import CONFIG, TinyCorpus

_TIMEOUT_SECONDS = 400  # each of two; a tenth of it on idle cores
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def file(tmp_path: Path, tiny_corpus: TinyCorpus) -> Path:
    base = {
        **CONFIG,
        "run_dir": str(tmp_path / "runs"),
        "data": {**CONFIG["data"], "path": str(tiny_corpus.path)},
        "stop": {"updates": 6},
        "checkpoint": {"every": 3},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    experiment = {
        "name": "trial",
        "base": "base.yaml",
        "workers": 1,
        "set": {"mode": "async"},
        "axes": {
            "corpus": {
                "there": {},
                "absent": {"data.path": str(tmp_path / "absent")},
            },
            "optimizer.learning_rate": [0.001, 0.002],
        },
        "exclude": [{"corpus": "absent", "optimizer.learning_rate": 0.002}],
    }
    path = tmp_path / "trial.yaml"
    path.write_text(yaml.safe_dump(experiment, sort_keys=False))
    return path


def test_an_experiment(file: Path, forked: ForkedRanks | None) -> None:
    run_cli = CliRunner(forked)
    directory = file.parent / "runs" / "trial"
    first = run_cli("experiment", file, "--jobs", "2", timeout=_TIMEOUT_SECONDS)
    # One run has no corpus: it is named with its log, and the others have ended.
    assert first.returncode == 2, first.stderr
    failed = "trial-absent-learning_rate0.001-async-seed1"
    assert f"failed: {failed}: hpcasync: error: there is no prepared corpus" in first.stderr
    assert f"(log {directory}/logs/{failed}.log)" in first.stderr and "1 of 3 runs have not ended" in first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    ended = [directory / f"trial-there-learning_rate{rate}-async-seed1" for rate in ("0.001", "0.002")]
    summaries = [json.loads((path / "summary.json").read_text()) for path in ended]
    assert [summary["num_updates"] for summary in summaries] == [6, 6]
    assert {path.name for path in directory.iterdir()} >= {"report.html", "results.md", "results.json", "results.csv"}
    assert re.search(r"async +there +0.001 ", first.stdout)

    # Broken off after its first checkpoint: it goes on from there, and the run that has ended is left alone.
    (ended[0] / "summary.json").unlink()
    _remove_newest_checkpoint(ended[0])
    left_alone = (ended[1] / "summary.json").stat().st_mtime_ns
    text = yaml.safe_load(file.read_text())
    del text["axes"]["corpus"]["absent"], text["exclude"]
    file.write_text(yaml.safe_dump(text, sort_keys=False))
    second = run_cli("experiment", file, timeout=_TIMEOUT_SECONDS)
    assert second.returncode == 0, second.stderr
    assert "2 runs, 1 of them finished before" in second.stdout
    events: list[dict[str, Any]] = [json.loads(s) for s in (ended[0] / "metrics.jsonl").read_text().splitlines()]
    assert [event["text"] for event in events if event["event"] == "note"] == [
        f"resuming from {ended[0]}/checkpoints/u00000003"
    ]
    assert (ended[1] / "summary.json").stat().st_mtime_ns == left_alone
    results = json.loads((directory / "results.json").read_text())
    assert [group["runs"][0]["finished"] for group in results["groups"]] == [True, True]


def _remove_newest_checkpoint(run_dir: Path) -> None:
    newest = max((run_dir / "checkpoints").iterdir())
    assert newest.name == "u00000006"
    newest.rename(newest.with_name("u00000006.partial"))
