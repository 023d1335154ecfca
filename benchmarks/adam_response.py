"""What Adam makes of n gradients: one step on their sum against a step on each, with the gradients of a real model.

    .venv/bin/python benchmarks/adam_response.py configs/multi30k.yaml data.path=CORPUS model.dim=128

The model is trained for a while, one batch an update, so that Adam's moments are those of training. Then, from one and
the same state, n batches are used in three ways: one step on the gradient of all their tokens (what summing at the
servers does); n steps, one on each gradient, all computed from the parameters before the first (what plain
asynchronous updates come to when every gradient is stale); n steps, each gradient computed from the parameters that the
step before has left (small synchronous batches). The learning rate is the same in all steps; no clipping, no averages.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch

from hpcasync.config.schema import load_config
from hpcasync.errors import UserError
from hpcasync.ps.server.shard_state import ShardState, blocks_of
from hpcasync.train.loop.optimizers import optimizer_factory
from hpcasync.train.loop.step import GradientStep
from hpcasync.train.loop.task import Task, make_task

_WARMUP = 50
_HELD_OUT_BATCHES = 4

Gradient = tuple[torch.Tensor, int]


@dataclass(frozen=True)
class Row:
    """Steps from one state with one set of batches.

    Attributes:
        num_updates: made before.
        num_gradients: n.
        step: root mean square over parameters of what the one step changes, in learning rates.
        stale, fresh: norm of what n steps change, over that of the one step.
        stale_cosine, fresh_cosine: of the angle between the two changes.
        loss, loss_one, loss_stale, loss_fresh: per target token of batches that come later, before and after.
    """

    num_updates: int
    num_gradients: int
    step: float
    stale: float
    stale_cosine: float
    fresh: float
    fresh_cosine: float
    loss: float
    loss_one: float
    loss_stale: float
    loss_fresh: float


class Trainer:
    """The model with its optimizer, and copies of both.

    Args:
        task: corpus and model.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._step = GradientStep(task.config, task.model, task.flat, task.plan)
        self.rate = task.config.optimizer.learning_rate
        self.state = self.copy_of(None)

    def copy_of(self, state: ShardState | None) -> ShardState:
        """A state that goes its own way; of the model as it is now for None."""
        of = self._task.flat.parameters if state is None else state.parameters
        copy = ShardState(of.clone(), optimizer_factory(self._task.config.optimizer))
        if state is not None:
            copy.load_state_tensors(state.state_tensors())
        return copy

    def gradient(self, state: ShardState, ticket: int) -> Gradient:
        """The gradient of a batch, summed over its target tokens, and their number."""
        self._task.flat.parameters.copy_(state.parameters)
        tickets = iter([ticket])
        done = self._step.run(lambda: next(tickets, None))
        if not done.num_tokens:
            raise UserError(f"the gradient of batch {ticket} is not finite: lower optimizer.learning_rate")
        return self._task.flat.gradient.clone(), done.num_tokens

    def apply(self, state: ShardState, gradients: Sequence[Gradient], version: int = 1, factor: float = 1.0) -> None:
        """One optimizer step on the mean over the tokens of some gradients."""
        total = torch.stack([gradient for gradient, _ in gradients]).sum(0)
        scale = 1 / sum(num_tokens for _, num_tokens in gradients)
        state.apply(blocks_of(total), scale=scale, learning_rate=factor * self.rate, version=version)

    def train(self, first: int, last: int) -> None:
        """Updates of one batch each, the learning rate warmed up over the first ones."""
        for ticket in range(first, last):
            factor = min(1.0, (ticket + 1) / _WARMUP)
            self.apply(self.state, [self.gradient(self.state, ticket)], ticket + 1, factor)

    def loss(self, state: ShardState, tickets: Sequence[int]) -> float:
        """Negative log likelihood per target token of some batches, without dropout."""
        self._task.flat.parameters.copy_(state.parameters)
        self._task.model.eval()
        total, num_tokens = 0.0, 0
        with torch.no_grad():
            for batch in map(self._task.plan.batch, tickets):
                _, loss = self._task.model.summed_loss(batch.source, batch.target_input, batch.target_output, 0.0)
                total, num_tokens = total + float(loss), num_tokens + batch.num_target_tokens
        self._task.model.train()
        return total / num_tokens


def respond(trainer: Trainer, num_updates: int, tickets: Sequence[int], held_out: Sequence[int]) -> Row:
    """Use some batches in the three ways, from the trainer's state."""
    gradients = [trainer.gradient(trainer.state, ticket) for ticket in tickets]
    one, stale, fresh = (trainer.copy_of(trainer.state) for _ in range(3))
    trainer.apply(one, gradients)
    for gradient in gradients:
        trainer.apply(stale, [gradient])
    for ticket in tickets:
        trainer.apply(fresh, [trainer.gradient(fresh, ticket)])
    change = [(state.parameters - trainer.state.parameters).double() for state in (one, stale, fresh)]
    norms = [float(torch.linalg.vector_norm(vector)) for vector in change]
    cosines = [float(change[0] @ other) / (norms[0] * norm) for other, norm in zip(change[1:], norms[1:], strict=True)]
    losses = [trainer.loss(state, held_out) for state in (trainer.state, one, stale, fresh)]
    step = norms[0] / (change[0].numel() ** 0.5 * trainer.rate)
    return Row(
        num_updates, len(tickets), step, norms[1] / norms[0], cosines[0], norms[2] / norms[0], cosines[1], *losses
    )


def show(rows: Sequence[Row]) -> None:
    """Print a table of means over the draws."""
    click.echo(
        "| updates before | n | one step, in learning rates | n stale steps: size | cosine | n fresh steps: size | "
        "cosine | loss before | one step | n stale | n fresh |"
    )
    click.echo("|---:" * 11 + "|")
    for point in dict.fromkeys((row.num_updates, row.num_gradients) for row in rows):
        drawn = [asdict(row) for row in rows if (row.num_updates, row.num_gradients) == point]
        mean = {name: statistics.fmean(row[name] for row in drawn) for name in drawn[0]}
        cells = [f"{value:.0f}" for value in point]
        cells += [f"{mean[name]:.2f}" for name in ("step", "stale", "stale_cosine", "fresh", "fresh_cosine")]
        cells += [f"{mean[name]:.3f}" for name in ("loss", "loss_one", "loss_stale", "loss_fresh")]
        click.echo(f"| {' | '.join(cells)} |")


def _numbers(_ctx: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of numbers such as 1,2,4") from error


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--after", default="50,200,800", show_default=True, callback=_numbers, help="Updates made before.")
@click.option("--gradients", default="2,4,8,16", show_default=True, callback=_numbers, help="Numbers n.")
@click.option("--draws", default=3, show_default=True, type=click.IntRange(min=1), help="Sets of batches for each n.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all rows there.")
def main(
    config: Path,
    overrides: tuple[str, ...],
    after: tuple[int, ...],
    gradients: tuple[int, ...],
    draws: int,
    json_path: Path | None,
) -> None:
    """Train as CONFIG says, with one thread, and compare."""
    torch.set_num_threads(1)
    fixed = ("optimizer.name=adam", "optimizer.clip_norm=0", "optimizer.ema_decay=0", "validation.score=false")
    rows: list[Row] = []
    try:
        trainer = Trainer(make_task(load_config(config, (*overrides, *fixed)), torch.device("cpu")))
        made = 0
        for num_updates in after:
            trainer.train(made, num_updates)
            made = num_updates
            held_out = range(after[-1], after[-1] + _HELD_OUT_BATCHES)
            drawn = after[-1] + _HELD_OUT_BATCHES
            for num_gradients in gradients:
                for _ in range(draws):
                    rows.append(respond(trainer, num_updates, range(drawn, drawn + num_gradients), held_out))
                    drawn += num_gradients
    except UserError as error:
        raise click.ClickException(str(error)) from error
    show(rows)
    if json_path:
        json_path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
