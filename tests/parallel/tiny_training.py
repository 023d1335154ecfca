"""A corpus and a model small enough to train in a second, and what a run leaves behind."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from runners import MpiRunner
from safetensors.numpy import load_file
from warm_job import NUM_RANKS, WarmJob

from hpcasync.config.schema import Config, load_config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.data.prepare import PrepareOptions, prepare
from hpcasync.data.subwords import SubwordOptions
from hpcasync.launch.process import FinishedJob

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "data": {"batch_tokens": 150},
    "model": {"dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.2},
    # Some gradients are zero but for rounding (of the keys' bias, say): a large eps keeps Adam from magnifying them.
    "optimizer": {"learning_rate": 0.003, "clip_norm": 1.0, "ema_decay": 0.9, "eps": 1e-5},
    "schedule": {"warmup": 5},
    "staleness": {"fresh_start": 0},
    "stop": {"epochs": 2},
    "validation": {"score": False},
    "logging": {"every": 1, "tensorboard": False},
}

# A launch takes five seconds on two idle cores; on busy ones the imports alone take a minute.
_TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class TinyCorpus:
    """A prepared corpus with the parts that tests compute from."""

    path: Path

    def plan(self, config: Config) -> BatchPlan:
        """The batches of a run."""
        corpus = PreparedCorpus.open(self.path)
        vocabularies = corpus.source_vocabulary, corpus.target_vocabulary
        return BatchPlan(corpus.train, *vocabularies, batch_tokens=config.data.batch_tokens, seed=config.seed)


def make_tiny_corpus(directory: Path) -> TinyCorpus:
    """Sentences of random words; the other side has each word's letters in reverse."""
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefgh", k=generator.randint(2, 5))) for _ in range(40)]
    for split, number in (("train", 240), ("valid", 12)):
        sentences = [generator.choices(words, k=generator.randint(3, 9)) for _ in range(number)]
        (directory / f"{split}.src").write_text("".join(f"{' '.join(s)}\n" for s in sentences))
        mirrored = (" ".join(word[::-1] for word in s) for s in sentences)
        (directory / f"{split}.tgt").write_text("".join(f"{line}\n" for line in mirrored))
    options = PrepareOptions(
        subwords=SubwordOptions(vocab_size=70), held_out={"valid": (directory / "valid.src", directory / "valid.tgt")}
    )
    prepare(directory / "train.src", directory / "train.tgt", directory / "corpus", options)
    return TinyCorpus(directory / "corpus")


@dataclass(frozen=True)
class Run:
    """A run directory after training."""

    config: Config
    job: FinishedJob

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.config.output_dir

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text())
        return summary

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Records of metrics.jsonl."""
        lines = [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == kind]

    @property
    def losses(self) -> list[float]:
        """Loss of each update (logging.every: 1)."""
        return [record["loss"] for record in self.records("update")]

    def state(self, name: str) -> dict[str, Any]:
        """State of a checkpoint."""
        state: dict[str, Any] = json.loads((self.path / "checkpoints" / name / "state.json").read_text())
        return state

    def parameters(self, name: str) -> dict[str, Any]:
        """Parameters of a snapshot by name (numpy)."""
        return dict(load_file(self.path / "snapshots" / name / "parameters.safetensors"))


class Trainer:
    """Trains tiny models in a directory of its own.

    Args:
        mpirun: for `hpcasync train` in jobs of their own.
        directory: for configuration and runs.
        corpus: to train on.
        warm: ranks that are there already, for what does not need a job of its own.
    """

    def __init__(self, mpirun: MpiRunner, directory: Path, corpus: TinyCorpus, warm: WarmJob | None = None) -> None:
        self._mpirun = mpirun
        self._warm = warm
        self._corpus = corpus
        self.path = directory / "config.yaml"
        values = {**CONFIG, "run_dir": str(directory / "runs"), "data": {**CONFIG["data"], "path": str(corpus.path)}}
        self.path.write_text(yaml.safe_dump(values))

    def __call__(self, num_ranks: int, *overrides: str, flags: Sequence[str] = (), exit_code: int = 0) -> Run:
        """Train on `num_ranks` ranks; another `exit_code` than 0: it is refused, by all ranks, before it begins."""
        if self._warm is None or num_ranks > NUM_RANKS:
            return self.command(num_ranks, *overrides, flags=flags, exit_code=exit_code)
        job = self._warm.train(num_ranks, [*flags, str(self.path), *overrides], timeout=_TIMEOUT_SECONDS)
        print(f"{self.path} {overrides}\n--- stdout\n{job.stdout}\n--- stderr\n{job.stderr}")
        assert job.returncode == exit_code
        return Run(load_config(self.path, overrides), job)

    def command(self, num_ranks: int, *overrides: str, flags: Sequence[str] = (), exit_code: int = 0) -> Run:
        """`hpcasync train` in a job of its own."""
        words: list[str | Path] = ["train", *flags, self.path, *overrides]
        job = self._mpirun(num_ranks, words, timeout=_TIMEOUT_SECONDS, exit_code=exit_code)
        return Run(load_config(self.path, overrides), job)
