"""Speed of the training step alone: one process, no MPI.

    .venv/bin/python benchmarks/training_step.py CORPUS [--eole ENVIRONMENT]

CORPUS is a directory made by `hpcasync data prepare` with a joint vocabulary. A step is what a worker and its server do
for one batch: make the batch, forward, loss, backward, norm and clipping, Adam. Each round times steps, this machine's
matrix product, and EOLE in turn, so that whatever else happens on the machine meets all of them.
"""

import json
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from peers.eole import EolePeer

from hpcasync.comm.allocator import keep_freed_memory
from hpcasync.config.model import ModelConfig
from hpcasync.config.schema import Config, parse_config
from hpcasync.data.batches import BatchPlan
from hpcasync.data.corpus import PreparedCorpus
from hpcasync.errors import UserError
from hpcasync.nmt.build import build_model
from hpcasync.ps.protocol.orders import Kind, Order
from hpcasync.ps.server.apply_group import apply_group
from hpcasync.ps.server.shard_state import ShardState, blocks_of, squared_norm
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.train.loop.optimizers import optimizer_factory
from hpcasync.train.loop.step import GradientStep

_MATMUL_SIZE = 1024
_MATMUL_REPEATS = 30


class Trainer:
    """Local training, step by step, of the program's own parts."""

    def __init__(self, config: Config, corpus: PreparedCorpus) -> None:
        source, target = corpus.source_vocabulary, corpus.target_vocabulary
        torch.manual_seed(config.seed)
        model = build_model(config.model, len(source), len(target), source.pad_id, target.pad_id)
        self.config = config
        self.corpus = corpus
        self.plan = BatchPlan(corpus.train, source, target, batch_tokens=config.data.batch_tokens, seed=config.seed)
        self.flat = FlatParameters(model)
        self._step = GradientStep(config, model, self.flat, self.plan)
        self._state = ShardState(self.flat.parameters, optimizer_factory(config.optimizer))
        self._ticket = 0

    def step(self) -> int:
        """One batch and one update; returns its target tokens."""
        ticket = self._ticket
        self._ticket += 1
        record = self._step.run(lambda: ticket)
        gradient, optimizer = self._step.gradient, self.config.optimizer
        order = Order(Kind.APPLY, 0, 0, self._ticket, record.num_tokens, optimizer.learning_rate)
        apply_group(self._state, blocks_of(gradient), order, optimizer.clip_norm, lambda: squared_norm(gradient))
        return record.num_tokens

    def next_pairs(self, num_steps: int) -> NDArray[np.int64]:
        """The positions in the corpus of the pairs of the next steps."""
        return np.concatenate([self.plan.indices(self._ticket + offset) for offset in range(num_steps)])


@dataclass
class Samples:
    """What the rounds measured."""

    tokens_per_second: list[float] = field(default_factory=list)
    tokens_per_cpu_second: list[float] = field(default_factory=list)
    gflops: list[float] = field(default_factory=list)
    matmul_gflops: list[float] = field(default_factory=list)
    page_faults_per_step: list[float] = field(default_factory=list)
    eole_tokens_per_second: list[float] = field(default_factory=list)


def matmul_flops(model: ModelConfig, corpus: PreparedCorpus, pairs: NDArray[np.int64]) -> float:
    """Floating-point operations of a step's matrix products: 2 per weight and token forward, 4 backward.

    Counted are real tokens and the products that the model is made of: not padding, not what an implementation adds.
    """
    attention, feed_forward = model.dim**2, 2 * model.dim * model.ffn_dim
    per_source = model.encoder_layers * (4 * attention + feed_forward) + model.decoder_layers * 2 * attention
    per_target = model.decoder_layers * (6 * attention + feed_forward) + len(corpus.target_vocabulary) * model.dim
    source = corpus.train.source_file.lengths(0, len(corpus.train))[pairs].astype(np.int64) + 1
    target = corpus.train.target_file.lengths(0, len(corpus.train))[pairs].astype(np.int64) + 1
    scores = model.encoder_layers * source @ source + model.decoder_layers * (target @ target + target @ source)
    return 6.0 * float(per_source * source.sum() + per_target * target.sum() + 2 * model.dim * scores)


def matmul_speed() -> float:
    """Median GFLOP/s of float32 products of square matrices in torch, with its present number of threads."""
    left, right, output = (torch.randn(_MATMUL_SIZE, _MATMUL_SIZE) for _ in range(3))
    seconds = []
    for _ in range(_MATMUL_REPEATS):
        started = time.perf_counter()
        torch.mm(left, right, out=output)
        seconds.append(time.perf_counter() - started)
    return 2e-9 * _MATMUL_SIZE**3 / statistics.median(seconds)


def measure(trainer: Trainer, num_steps: int, samples: Samples) -> None:
    """Time `num_steps` steps and add a sample to each list."""
    flops = matmul_flops(trainer.config.model, trainer.corpus, trainer.next_pairs(num_steps))
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    num_tokens = sum(trainer.step() for _ in range(num_steps))
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    samples.tokens_per_second.append(num_tokens / seconds)
    samples.tokens_per_cpu_second.append(num_tokens / cpu_seconds)
    samples.gflops.append(flops / seconds / 1e9)
    samples.page_faults_per_step.append((after.ru_minflt - before.ru_minflt) / num_steps)
    samples.matmul_gflops.append(matmul_speed())


def benchmark_config(corpus: Path, batch_tokens: int, preset: str) -> Config:
    """Dropout, smoothing, clipping and optimizer as in peers/eole.yaml."""
    values = {
        "mode": "sync",
        "device": "cpu",
        "data": {"path": str(corpus), "batch_tokens": batch_tokens},
        "model": {"preset": preset, "tie": "all", "dropout": 0.1, "attention_dropout": 0.1},
        "optimizer": {"name": "adamw", "learning_rate": 3e-4, "clip_norm": 1.0, "label_smoothing": 0.1},
        "stop": {"updates": 1},
    }
    return parse_config(values, source="the benchmark")


def show(samples: Samples) -> None:
    """Medians, smallest and largest values."""
    rows = [
        ("target tokens/s", samples.tokens_per_second, "{:.0f}"),
        ("target tokens per CPU second", samples.tokens_per_cpu_second, "{:.0f}"),
        ("GFLOP/s in matrix products", samples.gflops, "{:.1f}"),
        ("GFLOP/s of torch.mm alone", samples.matmul_gflops, "{:.1f}"),
        ("page faults per step", samples.page_faults_per_step, "{:.0f}"),
        ("EOLE target tokens/s", samples.eole_tokens_per_second, "{:.0f}"),
    ]
    for name, values, form in rows:
        if values:
            low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
            click.echo(f"{name:30} {middle:>8}  ({low} to {high}, {len(values)} samples)")
    share = statistics.median(a / b for a, b in zip(samples.gflops, samples.matmul_gflops, strict=True))
    click.echo(f"{'share of matmul speed':30} {share:>8.1%}")
    if samples.eole_tokens_per_second:
        ratio = statistics.median(samples.tokens_per_second) / statistics.median(samples.eole_tokens_per_second)
        click.echo(f"{'ratio to EOLE':30} {ratio:>8.2f}")


@click.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("--threads", default=2, show_default=True, help="Intra-op threads, of EOLE too.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--steps", default=20, show_default=True, help="Steps in a round.")
@click.option("--batch-tokens", default=2048, show_default=True)
@click.option("--preset", default="small", show_default=True, help="Model preset; EOLE knows small only.")
@click.option("--eole", type=click.Path(path_type=Path), help="Virtual environment with EOLE, to compare with.")
@click.option("--eole-steps", default=60, show_default=True, help="Steps of EOLE in a round, the first 10 not counted.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all samples there.")
def main(
    corpus: Path,
    threads: int,
    rounds: int,
    steps: int,
    batch_tokens: int,
    preset: str,
    eole: Path | None,
    eole_steps: int,
    json_path: Path | None,
) -> None:
    """Measure the training step on CORPUS."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    samples = Samples()
    try:
        prepared = PreparedCorpus.open(corpus)
        trainer = Trainer(benchmark_config(corpus, batch_tokens, preset), prepared)
        with tempfile.TemporaryDirectory() as scratch:
            peer = EolePeer(eole, prepared, Path(scratch) / "eole", batch_tokens, eole_steps) if eole else None
            measure(trainer, steps, Samples())  # warm-up
            for round_index in range(rounds):
                measure(trainer, steps, samples)
                line = f"round {round_index + 1}: {samples.tokens_per_second[-1]:.0f} target tokens/s"
                if peer:
                    rates = peer.run(threads)
                    samples.eole_tokens_per_second += rates
                    line += f", EOLE {statistics.median(rates):.0f}"
                click.echo(line)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{preset}, {trainer.flat.num_trainable:,} parameters, {threads} threads, torch {torch.__version__}")
    show(samples)
    if json_path:
        json_path.write_text(json.dumps(samples.__dict__, indent=2) + "\n")


if __name__ == "__main__":
    main()
