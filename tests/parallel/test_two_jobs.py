"""Two commands in one run directory, simulation or experiment: the second is refused, and harms nothing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from runners import CliRunner
from running_job import StartJob
from tiny_training import CONFIG, TinyCorpus, Trainer

from hpcasync.sole_writer import LOCK_FILE

_TIMEOUT_SECONDS = 240
CURE = "wait until that has ended, or end it, or set another name"


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, path
        time.sleep(0.05)


def test_two_jobs_in_one_run_directory(trainer: Trainer, tmp_path: Path, start_job: StartJob) -> None:
    settings = "mode=async", "name=contested", "stop={updates: 1000000}", "checkpoint={every: 200}"
    with start_job(2, trainer.path, *settings, log=tmp_path / "log") as job:
        job.wait_until(lambda: job.newest, "a checkpoint")
        coordinator = job.rank(0).pid
        for flags in (["--overwrite"], ["--resume"], []):
            refused = trainer(2, *settings, flags=flags, exit_code=2).job
            assert refused.stderr.count("hpcasync: error") == 1, refused.stderr
            assert f"contested-async-seed1 is being written by process {coordinator} on " in refused.stderr
            assert CURE in refused.stderr
        other = trainer(2, *settings[:1], "name=other", "stop={updates: 2}", flags=["--resume-from", str(job.run_dir)])
        assert not (other.path / LOCK_FILE).exists(), "another run's is not taken along"
        assert [record["event"] for record in job.records("start")] == ["start"], "the run is as it was"
        job.rank(0).kill()
        assert job.wait() == 137
    assert (job.run_dir / LOCK_FILE).exists()
    number = int(job.newest[1:]) + 5
    resumed = trainer(2, *settings[:2], f"stop={{updates: {number}}}", flags=["--resume"])
    assert resumed.summary["num_updates"] == number, "the dead hold no lock"
    assert not (resumed.path / LOCK_FILE).exists()


def test_two_simulations(run_cli: CliRunner, trainer: Trainer, tmp_path: Path) -> None:
    command = ["simulate", str(trainer.path), "name=virtual", "mode=async", "--workers", "2"]
    long = [sys.executable, "-m", "hpcasync", *command, "stop={updates: 1000000}"]
    run_dir = trainer.path.parent / "runs" / "virtual-async-seed1"
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(long, stdout=log, stderr=log) as first:
        wait_for(run_dir / "metrics.jsonl", first)
        for flags in (["--overwrite"], []):
            second = run_cli(*command, *flags, timeout=_TIMEOUT_SECONDS)
            assert second.returncode == 2 and f"is being written by process {first.pid} on" in second.stderr
        first.send_signal(signal.SIGUSR1)
        assert first.wait(_TIMEOUT_SECONDS) == 85
    assert not (run_dir / LOCK_FILE).exists()


def test_two_experiments(run_cli: CliRunner, tiny_corpus: TinyCorpus, tmp_path: Path) -> None:
    values = {**CONFIG, "run_dir": str(tmp_path / "runs"), "data": {"path": str(tiny_corpus.path)}}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**values, "stop": {"updates": 1000000}, "mode": "async"}))
    described = {
        "name": "short",
        "base": "base.yaml",
        "run": "simulated",
        "workers": 2,
        "axes": {"seed": [1]},
        "evaluate": "none",
    }
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(described))
    directory = tmp_path / "runs" / "short"
    command = [sys.executable, "-m", "hpcasync", "experiment", str(tmp_path / "short.yaml")]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as first:
        wait_for(directory / "logs", first)
        second = run_cli("experiment", tmp_path / "short.yaml", timeout=_TIMEOUT_SECONDS)
        assert second.returncode == 2 and f"short is being written by process {first.pid} on" in second.stderr
        for words in (["--dry-run"], ["--collect"]):
            assert run_cli("experiment", tmp_path / "short.yaml", *words, timeout=_TIMEOUT_SECONDS).returncode == 0
        first.send_signal(signal.SIGTERM)
        first.wait(_TIMEOUT_SECONDS)
