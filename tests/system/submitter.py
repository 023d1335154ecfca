"""A user of a cluster: a directory with a small corpus and a configuration, and `sbatch` there."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from slurm_cluster import SlurmCluster

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "slurm"
NUM_UPDATES = 12
WORDS = {"the": "das", "house": "Haus", "dog": "Tier", "sees": "sieht", "big": "große", "red": "rote", "and": "und"}
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "data": {"path": "data/tiny", "batch_tokens": 128},
    "accumulate": {"global": 2},
    "model": {"dim": 16, "ffn_dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1},
    "stop": {"updates": NUM_UPDATES},
    "validation": {"every": NUM_UPDATES // 2, "score": False},
    "logging": {"every": 4, "tensorboard": False},
}


@dataclass(frozen=True)
class Job:
    """What is left of a job that has ended."""

    state: str
    exit_code: str
    restarts: int
    output: str


class Submitter:
    """`sbatch slurm/NAME.sbatch ARGUMENTS` in a directory of its own, as a user does."""

    def __init__(self, cluster: SlurmCluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """Start a job and return its id."""
        if not any(option.startswith("--nodes") for option in options):
            options = ("--nodes=1", *options)
        return self.cluster.submit(SCRIPTS / script, *arguments, options=options, cwd=self.directory)

    def run(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> list[Job]:
        """Run a job, or an array of jobs, to the end."""
        return self.finish(self.submit(script, *arguments, options=options))

    def finish(self, job: str) -> list[Job]:
        """Wait for the end of a job."""
        # The components of a heterogeneous job beside the first run no script.
        ended = self.cluster.wait(job)
        records = [record for record in ended if record.get("HetJobOffset", "0") == "0"]
        return [
            Job(
                record["JobState"],
                record["ExitCode"],
                int(record["Restarts"]),
                Path(record["StdOut"]).read_text(),
            )
            for record in sorted(records, key=lambda record: int(record.get("ArrayTaskId", 0)))
        ]


def completed(jobs: list[Job]) -> list[Job]:
    """Fail with the log of the first job that did not end well."""
    for job in jobs:
        assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), job.output
    return jobs


def make_directory(directory: Path) -> None:
    """Write a configuration, tiny.yaml, and text."""
    (directory / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    nouns, adjectives = ("house", "dog"), ("big", "red")
    phrases = [f"the {adjective} {noun}" for adjective in adjectives for noun in nouns]
    sentences = [f"{a} sees {b} and {c}" for a in phrases for b in phrases for c in phrases]
    for split, lines in (("train", sentences * 3), ("valid", sentences[:6])):
        translated = [" ".join(WORDS[word] for word in line.split()) for line in lines]
        (directory / f"{split}.en").write_text("".join(f"{line}\n" for line in lines))
        (directory / f"{split}.de").write_text("".join(f"{line}\n" for line in translated))


def summary_of(run_dir: Path) -> dict[str, Any]:
    """RUN_DIR/summary.json."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def events_of(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind in RUN_DIR/metrics.jsonl."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("event") == kind]
