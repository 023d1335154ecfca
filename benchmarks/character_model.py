"""A model that has nothing to do with translation, trained by the engine: characters of Python's own manual.

    mpirun -n 3 python -m mpi4py benchmarks/character_model.py --mode async-global

The text is `pydoc_data.topics`, which every Python ships. Ranks: one server, the others workers. `sync` makes workers
wait until their gradient has been applied: with as many pushes per update as workers that is synchronous training.
"""

import json
import pydoc_data.topics
import time
from typing import Literal, get_args

import click
import torch
from mpi4py import MPI
from torch import nn

from hpcasync.choices import PullPolicy
from hpcasync.config.optimizer import OptimizerConfig
from hpcasync.config.schedule import ScheduleConfig
from hpcasync.ps.engine import Engine, EngineOptions
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Update
from hpcasync.ps.transport.link import LinkOptions
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.runs.counters import Counters
from hpcasync.train.loop.optimizers import make_optimizers
from hpcasync.train.loop.schedule import learning_rate

LENGTH, BATCH = 128, 16
MODES = ("sync", "async", "async-local", "async-global")


class CharacterModel(nn.Module):
    """A small causal Transformer over bytes."""

    def __init__(self, dim: int = 96, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, dim)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        # No layer: Muon, which is for those between the first and the last, would step the weight of nn.Linear.
        self.output = nn.Parameter(torch.empty(256, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.output_bias = nn.Parameter(torch.zeros(256))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH), persistent=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Summed negative log likelihood, in nats, of text[:, 1:] given what is before; text [B, LENGTH + 1] int64."""
        hidden = self.embedding(text[:, :-1]) + self.position
        hidden = self.layers(hidden, mask=self.mask, is_causal=True)
        logits = nn.functional.linear(hidden, self.output, self.output_bias)
        return nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten(), reduction="sum")


def corpus() -> tuple[torch.Tensor, torch.Tensor]:
    """Training and held-out text as bytes, int64."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    data = torch.tensor(list(text), dtype=torch.int64)
    return data[: -len(data) // 10], data[-len(data) // 10 :]


def batch(data: torch.Tensor, ticket: int) -> torch.Tensor:
    """[BATCH, LENGTH + 1] pieces of text; the ticket alone decides which."""
    starts = torch.randint(len(data) - LENGTH - 1, (BATCH,), generator=torch.Generator().manual_seed(ticket))
    return torch.stack([data[start : start + LENGTH + 1] for start in starts.tolist()])


class ScheduledObserver(MinimalObserver):
    """Lets the learning rate warm up over a tenth of the run, and then fall to zero along a half cosine."""

    def __init__(self, optimizer: OptimizerConfig, num_updates: int) -> None:
        super().__init__(optimizer.learning_rate, num_updates)
        self._optimizer = optimizer
        self._schedule = ScheduleConfig(name="cosine", warmup=num_updates // 10, total=num_updates)

    def learning_rate(self, update: Update) -> float:
        return learning_rate(self._optimizer, self._schedule, Counters(num_updates=len(self.losses) + 1))


def work(client: Client, model: CharacterModel, flat: FlatParameters, data: torch.Tensor, batches: int) -> None:
    """A worker: pull, sum the gradients of some batches, push, until the servers have had enough."""
    client.place_gradients(flat)
    while not client.should_stop():
        version = client.pull(flat.parameters)
        tickets = tuple(client.draw() for _ in range(batches))
        flat.gradient.zero_()
        total, num_tokens, started = 0.0, 0, time.perf_counter()
        for text in (batch(data, ticket) for ticket in tickets):
            loss = model(text)
            loss.backward()
            total += loss.item()
            num_tokens += text[:, 1:].numel()
        record = PushRecord(version, num_tokens, total, num_tokens, time.perf_counter() - started, tickets)
        if not (client.push(flat.gradient, record) and client.wait()):
            break
    client.finish()


@click.command()
@click.option("--mode", type=click.Choice(MODES), default="async-global", show_default=True)
@click.option("--updates", type=int, default=300, show_default=True, help="Of as many batches as there are workers.")
@click.option("--learning-rate", "peak", type=float, default=2e-3, show_default=True)
@click.option("--schedule", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True)
@click.option("--lookahead", type=float, default=1.0, show_default=True, help="As staleness.lookahead.")
@click.option("--optimizer", type=click.Choice(["adam", "muon"]), default="adam", show_default=True)
@click.option(
    "--pull", type=click.Choice(get_args(PullPolicy)), default="handled", show_default=True, help="exchange.pull."
)
@click.option("--nesterov/--no-nesterov", default=True, show_default=True, help="As optimizer.nesterov.")
@click.option("--fresh", type=float, default=0.25, show_default=True, help="Part of the updates that workers wait for.")
@click.option("--seed", type=int, default=1, show_default=True)
def main(
    mode: str,
    updates: int,
    peak: float,
    schedule: Literal["constant", "cosine"],
    lookahead: float,
    optimizer: Literal["adam", "muon"],
    pull: PullPolicy,
    nesterov: bool,
    fresh: float,
    seed: int,
) -> None:
    """Train, and print what came out as one line of JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    comm = MPI.COMM_WORLD
    num_workers = comm.size - 1
    model = CharacterModel()
    flat = FlatParameters(model)
    group = num_workers if mode in ("sync", "async-global") else 1
    batches = num_workers if mode == "async-local" else 1
    num_updates = updates * num_workers // (group * batches)
    options = EngineOptions(
        pushes_per_update=group,
        pull="applied" if mode == "sync" else pull,
        clip_norm=1.0,
        ema_decay=0.99,
        lookahead=lookahead,
        fresh_updates=round(fresh * num_updates),
        link=LinkOptions(max_tickets=batches),
    )
    config = OptimizerConfig(name=optimizer, nesterov=nesterov, learning_rate=peak)
    engine = Engine(comm, flat.parameters, make_optimizers(config, model, flat), options)
    train, held_out = corpus()
    observer = MinimalObserver(peak, num_updates) if schedule == "constant" else ScheduledObserver(config, num_updates)
    started = time.perf_counter()
    if engine.is_server:
        engine.serve(observer, observer)
    else:
        engine.start()
        work(engine.client, model, flat, train, batches)
    seconds = time.perf_counter() - started
    engine.close()
    if engine.is_coordinator:
        assert observer.final is not None
        flat.parameters.copy_(observer.final)
        with torch.no_grad():
            text = torch.cat([batch(held_out, -1 - number) for number in range(8)])
            nats = model(text).item() / text[:, 1:].numel()
        staleness, counts = engine.counts.staleness, engine.counts
        mean = sum(key * number for key, number in staleness.items()) / max(1, counts.num_applied)
        result = {"mode": mode, "bits_per_byte": nats / 0.6931472, "gradients": counts.num_applied, "seconds": seconds}
        result |= {"workers": num_workers, "staleness": mean, "learning_rate": peak}
        result |= {
            "optimizer": optimizer,
            "pull": pull,
            "schedule": schedule,
            "lookahead": lookahead,
            "nesterov": nesterov,
            "fresh": fresh,
            "seed": seed,
        }
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
