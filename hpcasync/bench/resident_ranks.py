"""What the ranks of `hpcasync bench memory` do: train, and look how much they occupy.

mpirun -n 3 python -m hpcasync.bench.resident_ranks CONFIG [key=value …]
"""

import json
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from hpcasync.train.loop.task import Task

_KINDS = ("RssAnon", "RssFile", "RssShmem")
_EVERY_SECONDS = 0.05
# Batches whose activations are added up: the largest is much like the largest of all, since batches are filled.
_NUM_BATCHES = 8


def resident() -> dict[str, float]:
    """Megabytes of this process by kind, as Linux counts them."""
    fields = dict(line.split(":", maxsplit=1) for line in Path("/proc/self/status").read_text().splitlines())
    return {kind: int(fields[kind].split()[0]) * 1024 / 1e6 for kind in _KINDS}


class Sampler(threading.Thread):
    """Keeps the largest of what this process occupies, until `stop`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = resident()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(_EVERY_SECONDS):
            self.most = max(self.most, resident(), key=lambda kinds: sum(kinds.values()))

    def stop(self) -> dict[str, float]:
        self._stopping.set()
        self.join()
        return self.most


def activation_bytes(task: "Task") -> int:
    """Bytes that the forward pass of a batch keeps for the backward pass, of the largest of a few batches."""
    import torch

    from hpcasync.train.loop.step import GradientStep

    step = GradientStep(task.config, task.model, task.flat, task.plan)
    own = task.flat.parameters.untyped_storage().data_ptr()
    most = 0
    for ticket in range(min(_NUM_BATCHES, task.plan.num_batches())):
        kept: dict[int, int] = {}

        def keep(saved: "torch.Tensor", kept: dict[int, int] = kept) -> "torch.Tensor":
            storage = saved.untyped_storage()
            if storage.data_ptr() != own:
                kept[storage.data_ptr()] = storage.nbytes()
            return saved

        tickets = iter([ticket])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            step.run(lambda tickets=tickets: next(tickets, None))  # type: ignore[misc]
        most = max(most, sum(kept.values()))
    return most


def needed(task: "Task", role: str, num_workers: int) -> dict[str, float]:
    """Megabytes that the model needs in a rank of this role."""
    vector = task.flat.num_elements * 4 / 1e6
    gradients = (1 + task.config.exchange.slots) * vector
    if role.startswith("server"):
        average = {"average": vector} if task.config.optimizer.ema_decay else {}
        lasting = {"parameters": vector, "optimizer state": 2 * vector, **average}
        return {
            **lasting,
            "sum of gradients": vector,
            "two published versions": 2 * vector,
            "gradients, where workers write them": num_workers * gradients,
            "copies, while a checkpoint and a snapshot are written": sum(lasting.values()) + vector,
        }
    activations = activation_bytes(task) / 1e6
    return {"parameters": vector, "gradients, where servers read them": gradients, "activations": activations}


def main(config_file: str, overrides: list[str]) -> None:
    """Train, and print what each rank has occupied."""
    stages: dict[str, float] = {}

    def mark(name: str) -> None:
        stages[name] = sum(resident().values()) - sum(stages.values())

    mark("Python")
    from mpi4py import MPI

    mark("MPI")
    import torch

    mark("torch")
    from hpcasync.bench.jobs import RESULT
    from hpcasync.config.schema import load_config
    from hpcasync.train.job import run_training
    from hpcasync.train.loop.task import make_task

    mark("hpcasync")
    comm, config = MPI.COMM_WORLD, load_config(Path(config_file), tuple(overrides))
    role = "server" if comm.rank < config.num_servers else f"worker {comm.rank - config.num_servers}"
    sampler = Sampler()
    sampler.start()
    run_training(config)
    most = sampler.stop()
    found: dict[str, Any] = {"role": role, "most": most, "imports": stages}
    found["needed"] = needed(make_task(config, torch.device("cpu")), role, comm.size - config.num_servers)
    ranks = comm.gather(found)
    if ranks is not None:
        print(RESULT + json.dumps(ranks), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
