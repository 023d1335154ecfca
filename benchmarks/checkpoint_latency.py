"""From the signal that announces a preemption to a complete checkpoint, on a real job.

    .venv/bin/python benchmarks/checkpoint_latency.py CORPUS [--servers 2] [--rounds 3]

CORPUS is a directory made by `hpcasync data prepare`. A job of servers and one worker trains a Transformer of about 60
million parameters; once it has made two updates it is sent USR1. Printed per round: seconds until the checkpoint has
its final name (its shards, digests and state are on disk then), until the job has ended, and the checkpoint's size.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from hpcasync.exit_codes import PREEMPTED
from hpcasync.launch.restarts import newest_checkpoint

# Six and six layers of 512; with 4,000 pieces these make 60 million parameters.
MODEL = ("model.preset=base", "model.ffn_dim=3200")
UPDATES_BEFORE = 2
TIMEOUT_SECONDS = 900.0


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path, exists=True))
@click.option("--servers", type=click.IntRange(min=1), default=1, help="Servers, each of which writes its shard.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Jobs, one after the other.")
@click.option("--directory", type=click.Path(path_type=Path), help="Where to write; default: a temporary directory.")
def main(corpus: Path, servers: int, rounds: int, directory: Path | None) -> None:
    """Measure how long a checkpoint takes after a signal."""
    seconds = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="hpcasync-latency-", dir=directory) as name:
            saved, ended, num_bytes, num_parameters = measure(corpus.resolve(), servers, Path(name))
        seconds.append(saved)
        print(
            f"round {number + 1}: {num_parameters:,} parameters, {servers} server(s): complete after {saved:.2f} s, "
            f"job ended after {ended:.2f} s, {num_bytes / 1e6:,.0f} MB",
            flush=True,
        )
    print(f"signal to complete checkpoint: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")


def measure(corpus: Path, num_servers: int, directory: Path) -> tuple[float, float, int, int]:
    """Run one job; returns seconds until the checkpoint and until the end, its bytes, and the model's parameters."""
    run_dir = directory / "latency-async-seed1"
    config = directory / "latency.yaml"
    config.write_text(
        f"name: latency\nrun_dir: {directory}\ndata: {{path: {corpus}, batch_tokens: 256}}\nmode: async\n"
        "optimizer: {name: adam}\nstop: {updates: 1000000}\nvalidation: {score: false}\n"
        "logging: {every: 1, tensorboard: false}\n"
    )
    overrides = (f"roles.servers={num_servers}", *MODEL)
    command = [sys.executable, "-m", "hpcasync", "launch", "-n", str(num_servers + 1), "--", "train", str(config)]
    with (directory / "log").open("wb") as log:
        job = subprocess.Popen([*command, *overrides], stdout=log, stderr=log)
        try:
            wait_until(lambda: num_updates(run_dir) >= UPDATES_BEFORE, job, directory / "log")
            started = time.monotonic()
            job.send_signal(signal.SIGUSR1)
            wait_until(lambda: newest_checkpoint(run_dir), job, directory / "log")
            saved = time.monotonic() - started
            code = job.wait(TIMEOUT_SECONDS)
            ended = time.monotonic() - started
        finally:
            if job.poll() is None:
                job.send_signal(signal.SIGHUP)
                job.wait()
    if code != PREEMPTED:
        raise click.ClickException(f"the job ended with code {code}:\n{(directory / 'log').read_text()[-3000:]}")
    checkpoint = run_dir / "checkpoints" / newest_checkpoint(run_dir)
    num_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    summary = json.loads((run_dir / "summary.json").read_text())
    return saved, ended, num_bytes, int(summary["num_parameters"])


def num_updates(run_dir: Path) -> int:
    """As of the last record."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return sum(json.loads(line)["event"] == "update" for line in lines)


def wait_until(condition: Callable[[], object], job: "subprocess.Popen[bytes]", log: Path) -> None:
    """Poll a condition while the job runs."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if job.poll() is not None and not condition():
            raise click.ClickException(f"the job ended with code {job.returncode}:\n{log.read_text()[-3000:]}")
        if time.monotonic() > deadline:
            raise click.ClickException(f"nothing happened in {TIMEOUT_SECONDS:g} s:\n{log.read_text()[-3000:]}")
        time.sleep(0.005)


if __name__ == "__main__":
    main()
