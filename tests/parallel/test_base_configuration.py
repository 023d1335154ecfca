"""configs/base.yaml on a small corpus: what a dry run tells, and a run that is as long as its epochs say."""

import json
import re
from pathlib import Path

import pytest
from runners import MpiRunner
from tiny_training import TinyCorpus
from warm_job import WarmJob

from hpcasync.config.schema import load_config

BASE = Path(__file__).parents[2] / "configs" / "base.yaml"
SMALL = ("model.dim=16", "model.ffn_dim=16", "model.heads=2", "model.encoder_layers=1", "model.decoder_layers=1")


def settings(tmp_path: Path, corpus: TinyCorpus, *more: str) -> tuple[str, ...]:
    where = f"data.path={corpus.path}", f"run_dir={tmp_path / 'runs'}"
    return (*where, *SMALL, "data.batch_tokens=256", "stop.epochs=3", "validation.score=false", *more)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_dry_run_tells_how_long_it_takes_and_writes_nothing(
    mpirun: MpiRunner, tmp_path: Path, tiny_corpus: TinyCorpus, num_ranks: int
) -> None:
    overrides = settings(tmp_path, tiny_corpus)
    job = mpirun(num_ranks, ["train", BASE, *overrides, "--dry-run"], timeout=240)
    num_workers = max(1, num_ranks - 1)
    num_batches = tiny_corpus.plan(load_config(BASE, overrides)).num_batches()
    found = re.search(r"length: stop.epochs=3, about (\d+) updates, 3 epochs, ([\d,]+) target tokens", job.stdout)
    assert found and int(found[1]) == -(-3 * num_batches // num_workers)
    expected = re.search(
        r"expected: about ([\d.]+) (s|min) at ([\d,]+) target tokens per second \((\d) worker", job.stdout
    )
    assert expected and int(expected[4]) == num_workers
    seconds = float(expected[1]) * (60 if expected[2] == "min" else 1)
    tokens, speed = (int(text.replace(",", "")) for text in (found[2], expected[3]))
    assert seconds == pytest.approx(tokens / speed, rel=0.1, abs=1)
    assert ("one process stands for a worker" in job.stdout) == (num_ranks == 1)
    assert job.stdout.splitlines()[-1] == "nothing has been written" and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("mode", ["sync", "async-global"])
def test_the_learning_rate_reaches_zero_with_the_last_epoch(
    warm: WarmJob, tmp_path: Path, tiny_corpus: TinyCorpus, mode: str
) -> None:
    overrides = settings(tmp_path, tiny_corpus, f"mode={mode}", "logging.every=100000")
    assert warm.train(3, [str(BASE), *overrides], timeout=240).returncode == 0
    records = [
        json.loads(line) for line in (tmp_path / f"runs/base-{mode}-seed1/metrics.jsonl").read_text().splitlines()
    ]
    # Shorter than logging.every: summed up once, at the end.
    (update,) = [record for record in records if record["event"] == "update"]
    assert update["data_epoch"] == 3 and update["learning_rate"] == pytest.approx(0, abs=1e-9)
    assert update["target_tokens_per_second"] > 0
    (start,) = [record for record in records if record["event"] == "start"]
    assert start["workers"] == (3 if mode == "sync" else 2)
