"""benchmarks/training_in_turn.py: each way is trained once a round, in turn, and compared with the first."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import TinyRun

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "training_in_turn.py"


@pytest.fixture
def config(tiny_run: TinyRun, tmp_path: Path) -> Path:
    model = {"dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "max_length": 64}
    data = {"path": str(tiny_run.corpus), "batch_tokens": 120}
    path = tmp_path / "config.yaml"
    values = {"data": data, "model": model, "stop": {"updates": 3}, "validation": {"score": False}}
    path.write_text(yaml.safe_dump(values))
    return path


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def test_a_table_of_what_the_runs_say(config: Path, tmp_path: Path) -> None:
    ways = ["--way", "fresh: exchange.pull=applied", "--way", "free:"]
    done = run(config, "stop.updates=2", *ways, "--out", tmp_path / "runs", "--seed", "1", "--seed", "2")
    assert done.returncode == 0, done.stderr
    *lines, _, _, fresh, free = done.stdout.splitlines()
    directories = [Path(line.partition(":")[0]) for line in lines]
    names = [f"{way}-async-global-seed{seed}" for seed in (1, 2) for way in ("fresh", "free")]
    assert directories == [tmp_path / "runs" / name for name in names]
    summaries = [json.loads((directory / "summary.json").read_text()) for directory in directories]
    assert [summary["num_updates"] for summary in summaries] == [2] * 4, "settings hold for all ways"
    assert [summary["seed"] for summary in summaries] == [1, 1, 2, 2]
    assert summaries[0]["staleness"]["mean"] == 0, "settings of a way hold for it"
    assert fresh.startswith("| fresh | ") and "| 1.00 (1.00 to 1.00) | 0.00 |" in fresh
    assert free.startswith("| free | ")


@pytest.mark.parametrize("way", ["mode=sync", "a b: mode=sync", ": mode=sync"])
def test_a_way_needs_a_name(way: str, config: Path, tmp_path: Path) -> None:
    done = run(config, "--way", way, "--out", tmp_path)
    assert done.returncode == 2 and f"--way {way!r}: write a name" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_ways_of_one_name_are_refused(config: Path, tmp_path: Path) -> None:
    done = run(config, "--way", "a: mode=sync", "--way", "a:", "--out", tmp_path)
    assert done.returncode == 2 and done.stderr == "--way: two are called a\n"


def test_what_has_been_measured_is_told_though_a_later_job_fails(config: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "free-async-global-seed2").mkdir(parents=True)
    (runs / "free-async-global-seed2" / "config.yaml").touch()  # is never overwritten
    betas = '--way=free: optimizer.name=adam "optimizer.betas=[0.9, 0.98]"'
    done = run(config, betas, "--out", runs, "--seed", "1", "--seed", "2")
    assert done.returncode == 2 and "holds a run already" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("| free | ")


def test_a_job_that_fails_ends_it(config: Path, tmp_path: Path) -> None:
    done = run(config, "--way", "nowhere: data.path=/nowhere", "--out", tmp_path)
    assert done.returncode == 2 and "/nowhere" in done.stderr and "Traceback" not in done.stderr
