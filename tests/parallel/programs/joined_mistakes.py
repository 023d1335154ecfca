"""Mistakes of a program that joins a job, in turn, on one rank: `joined_mistakes.py DIRECTORY`; prints what is said."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import hpcasync
from hpcasync.errors import UserError

DIRECTORY = Path(sys.argv[1])
MISTAKES: dict[str, Callable[[], object]] = {}
LOADER = DataLoader(TensorDataset(torch.ones(12, 3)), 4)


def mistake(function: Callable[[], object]) -> Callable[[], object]:
    MISTAKES[function.__name__.replace("_", "-")] = function
    return function


def made(kind: Any = torch.optim.SGD, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    return model, kind(model.parameters(), **{"lr": 0.1, **options})


def joined(model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> hpcasync.Job:
    return hpcasync.join(model, optimizer, run=DIRECTORY / "run", overwrite=True, **options)


def backward(model: nn.Module, batch: Any) -> None:
    model(batch[0]).sum().backward()


class Stream(IterableDataset[torch.Tensor]):
    """Samples without indices."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        yield torch.ones(3)


@mistake
def misspelt_setting() -> None:
    joined(*made(), settings={"staleness.lookahed": 1})


@mistake
def setting_of_translations() -> None:
    joined(*made(), settings={"stop.patience": 3})


@mistake
def start_in_warm_ups() -> None:
    joined(*made(), settings={"staleness.fresh_start": 0})


@mistake
def no_end() -> None:
    list(joined(*made()).share(LOADER))


@mistake
def share_twice() -> None:
    model, optimizer = made()
    job = joined(model, optimizer)
    for batch in job.share(LOADER, updates=1):
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()
    list(job.share(LOADER, updates=1))


@mistake
def no_zero_grad() -> None:
    model, optimizer = made()
    for batch in joined(model, optimizer).share(LOADER, epochs=1):
        backward(model, batch)
        optimizer.step()


@mistake
def step_without_a_batch() -> None:
    model, optimizer = made()
    joined(model, optimizer)
    optimizer.step()


@mistake
def too_many_batches() -> None:
    model, optimizer = made()
    for number, batch in enumerate(joined(model, optimizer).share(LOADER, epochs=1)):
        backward(model, batch)
        if number:
            optimizer.step()


@mistake
def no_step() -> None:
    model, optimizer = made()
    for batch in joined(model, optimizer).share(LOADER, epochs=1):
        backward(model, batch)


def early(change: Callable[[nn.Module, hpcasync.Job], object]) -> None:
    """A program whose gradients leave during backward, and that changes something after it."""
    model, optimizer = made()
    job = joined(model, optimizer, mode="sync", settings={"sums_during_backward": True})
    for batch in job.share(LOADER, epochs=1):
        backward(model, batch)
        change(model, job)
        optimizer.step()
        optimizer.zero_grad()


@mistake
def clipped_on_the_way() -> None:
    early(lambda model, _: nn.utils.clip_grad_norm_(model.parameters(), 0.1))


@mistake
def scaled_on_the_way() -> None:
    model, optimizer = made()
    scaler = torch.amp.GradScaler("cpu")
    job = joined(model, optimizer, mode="sync", settings={"sums_during_backward": True})
    for batch in job.share(LOADER, epochs=1):
        scaler.scale(model(batch[0]).sum()).backward()
        scaler.step(optimizer)


@mistake
def backward_twice() -> None:
    early(lambda model, _: backward(model, [torch.ones(4, 3)]))


@mistake
def late_weight() -> None:
    early(lambda _, job: job.weigh(7))


@mistake
def sums_of_servers() -> None:
    joined(*made(), settings={"sums_during_backward": True})


@mistake
def late_score() -> None:
    job = joined(*made())
    job.record(accuracy=0.5)


@mistake
def late_loss() -> None:
    model, optimizer = made()
    job = joined(model, optimizer)
    for batch in job.share(LOADER, epochs=1):
        backward(model, batch)
        optimizer.step()
        job.log(loss=1.0)


@mistake
def no_weight() -> None:
    job = joined(*made())
    for _ in job.share(LOADER, epochs=1):
        job.weigh(0)


@mistake
def foreign_parameter() -> None:
    joined(nn.Linear(3, 2), made()[1])


@mistake
def forgotten_parameter() -> None:
    model = nn.Linear(3, 2)
    joined(model, torch.optim.SGD([model.weight], lr=0.1))


@mistake
def used_optimizer() -> None:
    model, optimizer = made(momentum=0.9)
    backward(model, [torch.ones(3)])
    optimizer.step()
    joined(model, optimizer)


@mistake
def mixed_types() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double())
    joined(model, torch.optim.SGD(model.parameters(), lr=0.1))


@mistake
def lbfgs() -> None:
    model, optimizer = made(torch.optim.LBFGS)
    list(joined(model, optimizer).share(LOADER, epochs=1))


@mistake
def adafactor() -> None:
    model, optimizer = made(torch.optim.Adafactor)
    list(joined(model, optimizer).share(LOADER, epochs=1))


@mistake
def plateau() -> None:
    model, optimizer = made()
    joined(model, optimizer, scheduler=[torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)])


@mistake
def scheduler_too_short() -> None:
    model, optimizer = made()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2)
    for batch in joined(model, optimizer, scheduler=scheduler).share(LOADER, epochs=2):
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()


def stepped(steps_scheduler: str, **options: Any) -> None:
    """A program that steps its scheduler by itself, in each batch or after each epoch."""
    model, optimizer = made()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for batches in joined(model, optimizer, scheduler=scheduler, **options).epochs(LOADER, 2):
        for batch in batches:
            backward(model, batch)
            optimizer.step()
            optimizer.zero_grad()
            if steps_scheduler == "each batch":
                scheduler.step()
        scheduler.step()


@mistake
def scheduler_of_epochs() -> None:
    stepped("each epoch")


@mistake
def scheduler_of_steps() -> None:
    stepped("each batch", schedule_per="epoch")


@mistake
def rate_by_hand() -> None:
    model, optimizer = made()
    for batch in joined(model, optimizer).share(LOADER, epochs=1):
        optimizer.param_groups[0]["lr"] = 0.01
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()


@mistake
def scheduler_of_another_optimizer() -> None:
    joined(*made(), scheduler=torch.optim.lr_scheduler.StepLR(made()[1], 2))


@mistake
def forgotten_step() -> None:
    model, optimizer = made()
    for batch in joined(model, optimizer).share(LOADER, epochs=1):
        backward(model, batch)
        optimizer.zero_grad()


@mistake
def forgotten_step_for_long() -> None:
    model, optimizer = made()
    for batch in joined(model, optimizer).share(LOADER, epochs=100):
        backward(model, batch)
        optimizer.zero_grad()


@mistake
def other_order() -> None:
    model, optimizer = made()
    joined(optimizer, model)  # type: ignore[arg-type]


@mistake
def no_values() -> None:
    with torch.device("meta"):
        joined(*made())


@mistake
def two_jobs() -> None:
    jobs = [joined(*made())]
    jobs.append(joined(*made()))


@mistake
def no_loader() -> None:
    for batches in joined(*made()).epochs([torch.ones(4, 3)], 1):  # type: ignore[arg-type]
        list(batches)


@mistake
def no_epochs() -> None:
    next(joined(*made()).epochs(LOADER, 0))


@mistake
def several_losses() -> None:
    job = joined(*made())
    for _ in job.share(LOADER, epochs=1):
        job.log(torch.ones(4))


@mistake
def several_scores() -> None:
    job = joined(*made())
    for _ in job.share(LOADER, epochs=1):
        job.record(accuracy=torch.ones(3))


@mistake
def stream_by_epochs() -> None:
    list(joined(*made(), schedule_per="epoch").share(DataLoader(Stream(), 4), epochs=1))


@mistake
def empty_stream() -> None:
    list(joined(*made()).share(DataLoader(Stream(), 4, drop_last=True), updates=1))


@mistake
def no_batches() -> None:
    list(joined(*made()).share(DataLoader(TensorDataset(torch.ones(3, 3)), 4, drop_last=True), epochs=1))


@mistake
def another_model() -> None:
    model, optimizer = made()
    for batch in hpcasync.join(model, optimizer, run=DIRECTORY / "kept").share(LOADER, updates=1):
        backward(model, batch)
        optimizer.step()
        optimizer.zero_grad()
    other = nn.Linear(3, 4)
    job = hpcasync.join(other, torch.optim.SGD(other.parameters(), lr=0.1), run=DIRECTORY / "kept")
    list(job.share(LOADER, updates=2))


@mistake
def snapshot_of_another_model() -> None:
    hpcasync.load_snapshot(nn.Linear(3, 5), DIRECTORY / "kept")


@mistake
def no_snapshot() -> None:
    hpcasync.load_snapshot(nn.Linear(3, 5), DIRECTORY)


for name, make in MISTAKES.items():
    try:
        make()
        print(f"{name}: nothing was noticed", flush=True)
    except UserError as error:
        print(f"{name}: {error}", flush=True)
