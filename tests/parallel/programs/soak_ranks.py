"""Ranks that make small updates without end, for soak.py: push, pull, check, until the file `stop` is there.

    mpirun -n SERVERS+WORKERS python -m mpi4py soak_ranks.py DIRECTORY SERVERS NUM_ELEMENTS PUSHES_PER_UPDATE

A gradient is one integer, -1, 0 or 1, in all its elements, decided by its ticket; updates are steps of plain SGD. So
every version is one number, exact in float32, and a pull that mixes two versions, a gradient that is applied twice, or
one that is lost shows in it.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from mpi4py import MPI

from hpcasync.comm.mpi import library_name
from hpcasync.ps.engine import Engine, EngineOptions
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.updates import Update
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import FlatParameters

# Powers of two: with groups of 1, 2, 4, … every parameter stays exact.
LEARNING_RATE = 2.0**-6
# Versions whose value the coordinator and the workers note, to be compared in the end.
NOTED_EVERY = 256
_LOOK_SECONDS = 0.2


class Tally(MinimalObserver):
    """Adds up what the servers applied, and tells how far they are; keeps nothing per update."""

    def __init__(self, directory: Path) -> None:
        super().__init__(LEARNING_RATE)
        self._directory = directory
        self._looked = 0.0
        self._is_stopped = False
        self.num_updates = 0
        self.total = 0.0
        self.ticket_sum = 0
        self.noted: dict[int, float] = {0: 0.0}

    def after_update(self, update: Update, learning_rate: float) -> None:
        self.num_updates = update.version
        self.total += sum(push.record.loss_sum for push in update.pushes) / update.num_tokens
        self.ticket_sum += sum(ticket for push in update.pushes for ticket in push.record.tickets)
        if update.version % NOTED_EVERY == 0:
            self.noted[update.version] = self.value

    def after_drop(self, record: PushRecord, *, is_stale: bool) -> None:
        self.ticket_sum += sum(record.tickets)

    @property
    def value(self) -> float:
        """Of every parameter, now."""
        return -LEARNING_RATE * self.total

    def should_stop(self) -> bool:
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked = now
            self._is_stopped = (self._directory / "stop").exists()
            write(self._directory / "progress", {"num_updates": self.num_updates})
        return self._is_stopped


def value_of(ticket: int) -> int:
    """-1, 0 or 1, as often each."""
    return (ticket * 2_654_435_761 >> 7) % 3 - 1


def work(client: Client, flat: FlatParameters, *, is_placed: bool) -> dict[str, object]:
    """A worker's loop; checks that every pull is one version, and returns what it did and saw."""
    if is_placed:
        client.place_gradients(flat)
    parameters = flat.parameters
    noted: dict[int, float] = {}
    ticket_sum = 0
    while not client.should_stop():
        version = client.pull(parameters)
        lowest, highest = torch.aminmax(parameters)
        assert lowest == highest, f"version {version} is a mixture: {float(lowest)} to {float(highest)}"
        if version % NOTED_EVERY == 0:
            noted[version] = float(lowest)
        ticket = client.draw()
        value = value_of(ticket)
        flat.gradient.fill_(value)
        if not client.push(flat.gradient, PushRecord(version, 1, float(value), 0, 0.0, (ticket,))):
            break
        ticket_sum += ticket
        if not client.wait():
            break
    client.finish()
    return {
        "num_pushed": client.num_pushed,
        "num_pull_retries": client.num_pull_retries,
        "ticket_sum": ticket_sum,
        "noted": noted,
    }


def sgd(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LEARNING_RATE)


def main(directory: Path, num_servers: int, num_elements: int, pushes_per_update: int) -> None:
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    options = EngineOptions(num_servers=num_servers, pushes_per_update=pushes_per_update)
    flat = FlatParameters(torch.nn.ParameterList([torch.zeros(num_elements)]))
    engine = Engine(comm, flat.parameters, sgd, options)
    tally, done = Tally(directory), None
    write(directory / f"rank-{comm.rank}", {"pid": os.getpid(), "role": "server" if engine.is_server else "worker"})
    if engine.is_server:
        engine.serve(tally, tally)
    else:
        engine.start()
        # Of every two workers one leaves its gradients where it computes them.
        done = work(engine.client, flat, is_placed=comm.rank % 2 == 0)
    everybody = comm.gather(done, root=0)
    engine.close()
    if everybody is not None:
        workers = [done for done in everybody if done is not None]
        write(directory / "result", result_of(engine, tally, workers))


def result_of(engine: Engine, tally: Tally, workers: list[dict[str, object]]) -> dict[str, object]:
    """What happened, and what the coordinator knows of it."""
    final = tally.final
    assert final is not None
    lowest, highest = torch.aminmax(final)
    counts = engine.counts
    return {
        "mpi": library_name(),
        "num_updates": tally.num_updates,
        "num_pushed": counts.num_pushed,
        "num_applied": counts.num_applied,
        "num_dropped": counts.num_dropped,
        "staleness": dict(counts.staleness),
        "ticket_sum": tally.ticket_sum,
        "noted": tally.noted,
        "value": tally.value,
        "final": [float(lowest), float(highest)],
        "workers": workers,
    }


def write(path: Path, values: dict[str, object]) -> None:
    """Whole, or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(values))
    partial.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
