"""Every mode from end to end through `hpcasync train`, and what a run leaves behind."""

import json
from typing import Any

import yaml
from tiny_training import Run, TinyCorpus, Trainer

from hpcasync.config.schema import load_config

NUM_BATCHES = 44  # of the tiny corpus in two epochs
SUMMARY_KEYS = {
    "name",
    "mode",
    "roles",
    "num_updates",
    "num_steps",
    "num_batches",
    "target_tokens",
    "source_tokens",
    "wall_seconds",
    "target_tokens_per_second",
    "staleness",
    "gradients_pushed",
    "gradients_applied",
    "gradients_dropped",
    "best",
    "final",
    "versions",
    "seed",
    "configuration_digest",
    "stop_reason",
}


def check_every_run(run: Run, corpus: TinyCorpus, num_epochs: int) -> None:
    """What holds of any run over whole epochs."""
    summary = run.summary
    assert set(summary) >= SUMMARY_KEYS
    assert summary["mode"] == run.config.mode and summary["configuration_digest"] == run.config.digest
    assert summary["gradients_pushed"] == summary["gradients_applied"] + summary["gradients_dropped"]
    assert summary["num_steps"] == summary["gradients_applied"]
    assert sum(summary["staleness"]["histogram"].values()) == summary["gradients_applied"]
    assert summary["stop_reason"] == "end of the corpus"
    assert ("servers_busy" in summary) == (run.config.mode != "sync") and 0 < summary.get("servers_busy", 0.5) < 1
    check_coverage(run, corpus, num_epochs)
    check_files(run)
    header = run.job.stdout
    assert f"mode {run.config.mode}" in header and "MPI_THREAD_MULTIPLE" in header
    assert "target tokens per update" in header and "parameters" in header


def check_coverage(run: Run, corpus: TinyCorpus, num_epochs: int) -> None:
    """Each epoch's batches have been applied once each, or rejected once."""
    plan = corpus.plan(run.config)
    num_batches = num_epochs * plan.num_batches()
    batches = [plan.batch(ticket) for ticket in range(num_batches)]
    for epoch in range(num_epochs):
        first, last = epoch * plan.num_batches(), (epoch + 1) * plan.num_batches()
        covered = sorted(index for ticket in range(first, last) for index in plan.indices(ticket).tolist())
        assert covered == list(range(240))
    (state,) = [run.state(path.name) for path in (run.path / "checkpoints").iterdir()]
    assert state["tickets"] == {"low": num_batches, "above": []}
    summary = run.summary
    rejected = run.records("rejected")
    assert summary["gradients_dropped"] == len(rejected)
    assert summary["num_batches"] == num_batches - len(rejected) * run.config.accumulate.local
    if not rejected:
        assert summary["target_tokens"] == sum(batch.num_target_tokens for batch in batches)
        assert summary["source_tokens"] == sum(batch.num_source_tokens for batch in batches)


def check_files(run: Run) -> None:
    name = f"u{run.summary['num_updates']:08d}"
    assert (run.path / "last").read_text() == f"snapshots/{name}\n"
    assert {path.name for path in run.path.iterdir()} >= {"config.yaml", "source.spm", "target.spm", "metrics.jsonl"}
    assert load_config(run.path / "config.yaml") == run.config
    updates = run.records("update")
    assert [record["num_updates"] for record in updates] == list(range(1, run.summary["num_updates"] + 1))
    assert updates[-1]["loss"] < updates[0]["loss"] - 0.3, "the model learns"
    (start,) = run.records("start")
    assert start["configuration"] == run.config.to_dict()
    (end,) = run.records("end")
    assert end["num_updates"] == run.summary["num_updates"]
    assert not list(run.path.rglob("*.partial"))


def test_sync(trainer: Trainer, tiny_corpus: TinyCorpus) -> None:
    run = trainer.command(2, "mode=sync", "accumulate.local=2")
    check_every_run(run, tiny_corpus, 2)
    assert run.summary["roles"]["servers"] == 0 and run.summary["roles"]["workers"] == 2
    assert run.summary["staleness"]["max"] == 0 and run.summary["gradients_dropped"] == 0
    assert 2 * tiny_corpus.plan(run.config).num_batches() == NUM_BATCHES
    # Rounds of 2 workers times 2 batches: 11.
    assert run.summary["num_updates"] == NUM_BATCHES // 4 and run.summary["gradients_pushed"] == NUM_BATCHES // 2


def test_async(trainer: Trainer, tiny_corpus: TinyCorpus) -> None:
    run = trainer(3, "mode=async")
    check_every_run(run, tiny_corpus, 2)
    assert run.summary["num_updates"] == run.summary["gradients_pushed"] == NUM_BATCHES


def test_async_local_in_bf16(trainer: Trainer, tiny_corpus: TinyCorpus) -> None:
    run = trainer(3, "mode=async-local", "accumulate.local=3", "precision=bf16")
    check_every_run(run, tiny_corpus, 2)
    # Pushes of 3, but each worker's last push may be smaller: 15, or 16.
    assert run.summary["num_updates"] in (NUM_BATCHES // 3 + 1, NUM_BATCHES // 3 + 2)
    assert run.summary["gradients_dropped"] == 0


def test_async_global_with_scores(trainer: Trainer, tiny_corpus: TinyCorpus) -> None:
    overrides = "mode=async-global", "accumulate.global=3", "roles.servers=2", "logging.tensorboard=true"
    run = trainer.command(4, *overrides, "validation.score=true", "validation.every=5", "validation.beam=2")
    check_scores(run)
    # 14 groups of 3, and what is left.
    assert run.summary["num_updates"] == 15 and run.summary["gradients_pushed"] == NUM_BATCHES
    assert run.summary["roles"]["servers"] == 2 and run.summary["roles"]["workers"] == 2
    assert list((run.path / "tensorboard").iterdir())


def check_scores(run: Run) -> None:
    validations = run.records("validation")
    names = ["u00000005", "u00000010", "u00000015"]
    assert [record["name"] for record in validations] == names
    assert {path.name for path in (run.path / "snapshots").iterdir()} == set(names)
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == set(names)
    assert validations[-1]["loss"] < validations[0]["loss"]
    summary = run.summary
    best: dict[str, Any] = max(validations, key=lambda record: (record["bleu"], -record["loss"]))
    assert summary["best"] == best and summary["final"] == validations[-1]
    assert summary["final"]["bleu_signature"].startswith("nrefs:1|case:mixed|")
    assert (run.path / "best").read_text() == f"snapshots/{best['name']}\n"
    for name in names:
        state = json.loads((run.path / "snapshots" / name / "state.json").read_text())
        assert state["num_updates"] == int(name[1:]) and state["wall_seconds"] > 0 and state["target_tokens"] > 0
    assert "BLEU" in run.job.stdout and "best so far" in run.job.stdout


def test_async_combined_in_fp16(trainer: Trainer, tiny_corpus: TinyCorpus) -> None:
    # 2 x 2, as in Aji & Heafield 2019; fp16 may reject gradients while it looks for its scale.
    run = trainer(3, "mode=async-combined", "accumulate.local=2", "accumulate.global=2", "precision=fp16")
    check_every_run(run, tiny_corpus, 2)
    assert run.summary["gradients_pushed"] in (NUM_BATCHES // 2, NUM_BATCHES // 2 + 1)


def test_a_server_per_device_with_mapped_windows(trainer: Trainer) -> None:
    settings = "roles.servers=per-device", "exchange.window=mapped", "exchange.overlap=push", "name=beside"
    run = trainer(3, "mode=async-global", *settings, "stop={updates: 6}")
    assert run.summary["roles"]["servers"] == 1 and run.summary["roles"]["workers"] == 2, "the host is the device"
    assert yaml.safe_load((run.path / "config.yaml").read_text())["roles"]["servers"] == 1
    assert "cpu memory that they map (2 slots per worker)" in run.job.stdout
    assert run.summary["num_updates"] == 6 and run.losses[-1] < run.losses[0]
    assert run.summary["gradients_pushed"] == run.summary["gradients_applied"] + run.summary["gradients_dropped"]


def test_a_time_limit(trainer: Trainer) -> None:
    summary = trainer(3, "mode=async", "name=limited", "stop={seconds: 1}", "logging.every=1000").summary
    assert summary["stop_reason"] == "stop.seconds=1 reached"
    assert summary["gradients_pushed"] == summary["gradients_applied"] + summary["gradients_dropped"]
