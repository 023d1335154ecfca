"""The most ordinary of programs, which evaluates after each epoch: `joined_epochs.py RUN MODE EPOCHS [END AFTER]`.

Its schedule is one of epochs. After so many it leaves its loop (END is break), or is told to stop in the next (signal).
The first worker prints what it has evaluated, and every rank its version in the end.
"""

import json
import os
import signal
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hpcasync


def main(run: str, mode: str, num_epochs: int, ends_by: str = "", after: str = "0") -> None:
    torch.manual_seed(1)
    points = torch.randn(203, 6)
    values = points.sum(1, keepdim=True)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    loader = DataLoader(TensorDataset(points, values), 10, shuffle=True)
    job = hpcasync.join(model, optimizer, scheduler=scheduler, mode=mode, run=run, schedule_per="epoch")
    for epoch, batches in enumerate(job.epochs(loader, num_epochs)):
        for inputs, targets in batches:
            if ends_by == "signal" and epoch == int(after):
                os.kill(os.getpid(), signal.SIGUSR1)
            nn.functional.mse_loss(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
        if job.is_first:
            score = nn.functional.mse_loss(model(points), values)
            job.record(valid=score)
            print(json.dumps({"epoch": epoch, "version": job.version, "valid": float(score)}), flush=True)
        if ends_by == "break" and epoch + 1 == int(after) and job.is_first:
            break
    print(json.dumps({"rank": job.rank, "last": job.version, "sum": float(model.weight.sum())}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
