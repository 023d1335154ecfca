"""A small classifier trained by the engine, each time with a mistake that an argument names.

Ranks print their accuracies, and a worker what it is told. Rank 0 is the server. `start` tries in turn what is refused
before anything is trained. An exception is printed, too, and the worker goes; after `end` it ends the job.
"""

import contextlib
import io
import sys

import torch
from mpi4py import MPI
from torch import nn

from hpcasync.errors import UserError
from hpcasync.ps.engine import Engine, EngineOptions
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.worker.flat_parameters import FlatParameters

RANK = MPI.COMM_WORLD.rank
NUM_CLASSES, DIM, BATCH, NUM_UPDATES = 10, 32, 64, 120
START_MISTAKES = ("groups", "whole-vector", "closure", "start", "size", "shape", "options", "may-lose")


class Classifier(nn.Module):
    """Inputs are normalised: how well it does depends on running statistics."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM)
        self.first, self.second = nn.Linear(DIM, hidden), nn.Linear(hidden, NUM_CLASSES)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.second(torch.relu(self.first(self.norm(points))))
        return scores


class WholeVector(torch.optim.SGD):
    """Normalises gradients, as LAMB does its steps."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.grad /= parameter.grad.norm()
        super().step()


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around the centres of their classes, far from zero."""
    generator = torch.Generator().manual_seed(number)
    centres = torch.randn(NUM_CLASSES, DIM, generator=torch.Generator().manual_seed(7))
    classes = torch.randint(NUM_CLASSES, (BATCH,), generator=generator)
    return 5 * centres[classes] + 40 + torch.randn(BATCH, DIM, generator=generator), classes


def make_optimizer(mistake: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if mistake == "groups":
        decayed = {"params": [parameter for parameter in parameters if parameter.ndim >= 2]}
        others = {"params": [parameter for parameter in parameters if parameter.ndim < 2]}
        return torch.optim.AdamW([decayed, others])
    if mistake == "whole-vector":
        return WholeVector(parameters, lr=0.1)
    if mistake == "closure":
        return torch.optim.LBFGS(parameters)
    return torch.optim.Adam(parameters, fused=True)


def build_engine(mistake: str) -> tuple[Classifier, FlatParameters, Engine]:
    torch.manual_seed(1 + RANK if mistake == "start" else 1)
    is_other = RANK == 2
    model = Classifier(96 if mistake == "size" and is_other else 64)
    if mistake == "shape":  # as many elements
        model.extra = nn.Parameter(torch.ones((2, 8) if is_other else (8, 2)))
    flat = FlatParameters(model)
    options = EngineOptions(
        num_servers=2 if mistake == "start" else 1,
        pushes_per_update=2 if mistake == "options" and is_other else 1,
        may_lose_workers=mistake == "may-lose",
    )
    return model, flat, Engine(MPI.COMM_WORLD, flat.parameters, lambda p: make_optimizer(mistake, p), options)


def try_starts() -> None:
    for mistake in START_MISTAKES:
        try:
            build_engine(mistake)
        except UserError as error:
            message = str(error)
        else:
            message = "nothing"
        said = MPI.COMM_WORLD.gather(message, root=0)
        if said is not None:
            assert len(set(said)) == 1, said
            print(f"{mistake}: {message}", flush=True)


def work(mistake: str, engine: Engine, model: Classifier, flat: FlatParameters) -> None:
    client, step = engine.client, 0
    if RANK == 1:
        client.place_gradients(flat)  # the other one's gradients are copied
    engine.start()
    while not client.should_stop():
        version = client.pull(flat.parameters)
        ticket = client.draw()
        points, classes = batch(ticket)
        if mistake == "zero-grad":
            model.zero_grad()
        elif mistake == "zero-grad-in-place":
            model.zero_grad(set_to_none=False)
        else:
            flat.gradient.zero_()
        loss = nn.functional.cross_entropy(model(points), classes, reduction="sum")
        if mistake == "nan" or (mistake == "some-nan" and step % 3 == 1):
            loss = loss * torch.nan
        loss.backward()  # type: ignore[no-untyped-call]
        weight = 0 if mistake == "no-weight" else BATCH
        gradient = flat.gradient.double() if mistake == "wide" else flat.gradient
        record = PushRecord(version, weight, loss.item(), BATCH, 0.0, (ticket,))
        if not (client.push(gradient, record) and client.wait()):
            break
        step += 1


def work_and_tell(mistake: str, engine: Engine, model: Classifier, flat: FlatParameters) -> None:
    """Print what the worker is told, by a warning or by an exception."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            work(mistake, engine, model, flat)
    except UserError as error:
        said.write(str(error))
    engine.client.finish()
    print(f"{mistake} told {said.getvalue()!r}", flush=True)


def print_accuracy(who: str, model: Classifier) -> None:
    points, classes = batch(-1)
    with torch.no_grad():
        correct = (model.eval()(points).argmax(1) == classes).double().mean().item()
    print(f"{who} {correct:.3f}", flush=True)


def train(mistake: str, *, ends_job: bool) -> None:
    model, flat, engine = build_engine(mistake)
    observer = MinimalObserver(3e-3, NUM_UPDATES)
    if engine.is_server:
        engine.serve(observer, observer)
        assert observer.final is not None
        flat.parameters.copy_(observer.final)
        print_accuracy(f"{mistake} server", model)
    elif ends_job:
        work(mistake, engine, model, flat)
    else:
        work_and_tell(mistake, engine, model, flat)
    engine.close()
    print_accuracy(f"{mistake} rank {RANK}", model)


def main(mistakes: list[str]) -> None:
    torch.set_num_threads(1)
    for mistake in mistakes:
        if mistake == "start":
            try_starts()
        elif mistake != "end":
            train(mistake, ends_job="end" in mistakes)


if __name__ == "__main__":
    main(sys.argv[1:])
