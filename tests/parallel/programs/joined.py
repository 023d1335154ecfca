"""A small classifier that joins jobs, one after the other: `joined.py DIRECTORY '[{"run": …}, …]'`, or a file of that.

Each job is told of by its own arguments: those of `hpcasync.join` and `Job.share`, and what this program makes of them
(`made`). Every rank prints a line of JSON for each. A job of the mode `plain` is a loop of PyTorch alone.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import hpcasync

SAMPLES, CLASSES, DIM = 203, 4, 6
MOST_AHEAD = 5


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    centres = 3 * torch.randn(CLASSES, DIM, generator=generator)
    classes = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    return TensorDataset(centres[classes] + torch.randn(SAMPLES, DIM, generator=generator) + 5, classes)


class Stream(IterableDataset[Any]):
    """The same data in an order that is drawn anew each time."""

    part = slice(None)

    def __iter__(self) -> Iterator[Any]:
        order = list(range(SAMPLES))
        random.shuffle(order)
        samples = data()
        yield from (samples[index] for index in order[self.part])


class SplitStream(Stream):
    """One that gives each worker a part."""

    def set_worker(self, index: int, number: int) -> None:
        self.part = slice(index, None, number)


def make_loader(made: dict[str, Any]) -> "DataLoader[Any]":
    processes = made.get("processes", 0)
    if "stream" in made:
        stream = {"whole": Stream, "split": SplitStream}[made["stream"]]()
        return DataLoader(stream, made.get("batch", 8), num_workers=processes)
    return DataLoader(data(), made.get("batch", 8), shuffle=made.get("shuffle", True), num_workers=processes)


class Classifier(nn.Module):
    """With what programs have: running statistics, a frozen layer, a tied one, tensors that are not contiguous."""

    newest: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM)
        self.register_buffer("newest", torch.zeros(DIM, dtype=torch.bfloat16))
        self.frozen = nn.Linear(DIM, DIM).requires_grad_(False)
        self.hidden = nn.Linear(DIM, DIM)
        self.tied = self.hidden
        self.output = nn.Linear(DIM, CLASSES)
        self.output.weight = nn.Parameter(torch.randn(DIM, CLASSES).T / 3)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.newest.copy_(points[0].detach())
        hidden = self.norm(points) + self.frozen(points) / 9
        scores: torch.Tensor = self.output(torch.tanh(self.tied(torch.tanh(self.hidden(hidden)))))
        return scores


def make_optimizer(model: nn.Module, made: dict[str, Any]) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0, "lr": 0.02},
    ]
    kind: Any = getattr(torch.optim, made.get("optimizer", "AdamW"))
    special = {"momentum": 0.9} if kind is torch.optim.SGD else {"fused": made.get("fused", False)}
    optimizer: torch.optim.Optimizer = kind(groups, lr=0.01, **special)
    return optimizer


def make_scheduler(optimizer: torch.optim.Optimizer, made: dict[str, Any]) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.01, 0.03], total_steps=made.get("total", 105))


def wait_for_others(directory: Path, run: str, job: hpcasync.Job, number: int, dies_at: dict[str, int]) -> None:
    """Begin a batch when nobody is further behind than MOST_AHEAD: a slow worker gets as far as it is to, too."""
    (directory / f"{run}-{number}-{job.rank}.begun").touch()
    behind = number - MOST_AHEAD
    num_living = job.num_workers - sum(at < behind for at in dies_at.values())
    while behind > 0 and len(list(directory.glob(f"{run}-{behind}-*.begun"))) < num_living:
        time.sleep(0.005)


def plain_batches(loader: "DataLoader[Any]", epochs: int) -> Iterator[Any]:
    for _ in range(epochs):
        yield from loader


def train(directory: Path, case: dict[str, Any]) -> None:
    case = dict(case)
    name, made, share = case.get("run", ""), case.pop("made", {}), case.pop("share", {})
    torch.manual_seed(1)
    model = Classifier()
    optimizer = make_optimizer(model, made)
    scheduler = make_scheduler(optimizer, made)
    loader = make_loader(made)
    clip, num_local, job = case.get("clip_norm", 0.0), case.get("accumulate", 1), None
    if case["mode"] == "plain":
        batches = plain_batches(loader, share["epochs"])
    else:
        case["run"] = str(directory / case["run"])
        job = hpcasync.join(model, optimizer, scheduler=scheduler, **case)
        if "leaves" in made and (made["leaves"] == "all" or job.is_server):
            sys.exit(made.get("code", 0))
        batches = job.share(loader, **share)
    numbered: Any = enumerate(batches, start=1)
    if job is not None and "nested" in made:  # counts anew in each epoch, as most programs do
        numbered = (each for epoch in job.epochs(loader, share["epochs"]) for each in enumerate(epoch, start=1))
    seen, rates = 0, []
    compute = torch.compile(model) if "compiled" in made else model
    scaler = torch.amp.GradScaler("cpu", enabled="scaled" in made)
    dies_at = made.get("dies_at", {})
    for number, (points, classes) in numbered:
        if job is not None and number <= made.get("together", 0):
            wait_for_others(directory, name, job, number, dies_at)
        if job is not None and number == dies_at.get(str(job.rank)):  # with a batch of its own
            os.kill(os.getpid(), signal.SIGKILL)
        with torch.autocast("cpu", torch.bfloat16, enabled="scaled" in made):
            loss = nn.functional.cross_entropy(compute(points), classes) / num_local
        if job is not None:
            job.log(loss.detach() * num_local)
        if number in made.get("overflows_at", ()):
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        seen += len(points)
        if number % num_local == 0:
            if job is None and clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
        rates.append(optimizer.param_groups[0]["lr"])
        if job is not None and job.should_validate(every=made.get("every", 10)):
            job.record(quality=float(job.version))
        time.sleep(made.get("pause", 0.0))
        if number == made.get("signal_at") and job is not None and job.is_first:
            for path in directory.glob("*.pid"):
                os.kill(int(path.stem), signal.SIGUSR1)
        if number == made.get("kill_at") and job is not None and job.is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == made.get("exit_at") and job is not None and job.is_first:
            sys.exit(made.get("code", 0))
        if number == made.get("break_at"):
            break
    del batches, numbered  # a generator that somebody holds goes on after a break
    model.eval()
    with torch.no_grad():
        points, classes = data().tensors
        accuracy = float((model(points).argmax(1) == classes).float().mean())
    told = {"run": case.get("run"), "rank": job.rank if job else 0, "server": bool(job and job.is_server), "seen": seen}
    told["first"] = job is None or job.is_first
    told |= {"accuracy": accuracy, "sum": float(sum(p.double().sum() for p in model.parameters())), "rates": rates[-3:]}
    assert model.norm.running_mean is not None and model.norm.num_batches_tracked is not None
    told |= {"mean": model.norm.running_mean.tolist(), "tracked": int(model.norm.num_batches_tracked)}
    told["newest"] = model.newest.tolist()
    told["parameters"] = [values.flatten().tolist() for values in model.parameters()]
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    own = Path(sys.argv[1], f"{os.getpid()}.pid")
    own.touch()
    try:
        cases = sys.argv[2]
        for each in json.loads(Path(cases).read_text() if cases.endswith(".json") else cases):
            train(Path(sys.argv[1]), each)
    finally:
        own.unlink()
