"""Whole training runs as a benchmark starts them."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hpcasync.errors import UserError
from hpcasync.launch.here import job_line_here
from hpcasync.launch.process import capture, environment_of_ranks

# What it is compared with, and counted from, is on the CPU and has Adam; benchmarks/gpu measures GPUs.
_CONFIGURATION = """\
name: bench
device: cpu
data: {{path: {corpus}, batch_tokens: 2048}}
optimizer: {{name: adam, clip_norm: 1.0}}
validation: {{score: false}}
stop: {{updates: 1000000}}
"""


def write_configuration(directory: Path, corpus: str) -> Path:
    """The configuration of a benchmark's run, as a file in `directory`."""
    config = directory / "bench.yaml"
    config.write_text(_CONFIGURATION.format(corpus=Path(corpus).resolve()))
    return config


def run_training_job(directory: Path, corpus: str, overrides: Sequence[str], *, num_ranks: int) -> Path:
    """Train in `directory` and return the run directory."""
    config = write_configuration(directory, corpus)
    runs = directory / "runs"
    train = ("train", str(config), *overrides, f"run_dir={runs}", "--overwrite")
    environment = environment_of_ranks()
    line = job_line_here(num_ranks, (sys.executable, "-m", "hpcasync", *train), environment=environment)
    job = capture(line, environment, timeout_seconds=3600)
    if job.returncode or job.timed_out:
        raise UserError(f"`{line}` failed:\n{(job.stderr or job.stdout)[-3000:]}")
    newest = max(runs.glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    return newest.parent
