"""A small asynchronous job whose workers kill themselves at chosen moments; the coordinator prints what was applied.

`python dying_workers.py PULL WINDOW MOMENT…`: worker 1 dies at the first moment, worker 2 at the second.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import cast

import torch
from mpi4py import MPI

from hpcasync.choices import PullPolicy, WindowKind
from hpcasync.comm.mpi import gather_hosts
from hpcasync.comm.roles import assign_roles
from hpcasync.comm.shards import Shard
from hpcasync.comm.shared_words import SharedControlWindow
from hpcasync.data.batches import BatchPlan
from hpcasync.deaths import host_watch as liveness
from hpcasync.deaths.host_watch import LifeWatch
from hpcasync.ps.engine import Engine, EngineOptions, EngineSetup
from hpcasync.ps.minimal_observer import MinimalObserver
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.lost_work import LostWork
from hpcasync.ps.protocol.lost_workers import LostWorkers
from hpcasync.ps.protocol.observer import SaveRequest
from hpcasync.ps.protocol.record import PushRecord
from hpcasync.ps.protocol.tickets import TicketSequence
from hpcasync.ps.protocol.updates import Update
from hpcasync.ps.transport.link import LinkOptions
from hpcasync.ps.worker.client import Client
from hpcasync.ps.worker.flat_parameters import FlatParameters
from hpcasync.timeline import Timeline
from hpcasync.train.loop.batch_order import BatchOrder
from hpcasync.train.modes.asynchronous import AsynchronousExchange

NUM_SERVERS, NUM_TICKETS, NUM_LOCAL, EXIT_CODE = 2, 60, 2, 137
PUSHES_BEFORE = 3
# Of the first worker before those that surely die are dead: with all of them, nothing might be left for a slow one.
PUSHES_MEANWHILE = 8


class Recording(MinimalObserver):
    """Remembers what was applied, and who was lost."""

    def __init__(self) -> None:
        super().__init__(learning_rate=0.1)
        self.applied: Counter[int] = Counter()
        self.lost: list[int] = []
        self.is_stuck = False

    def after_update(self, update: Update, learning_rate: float) -> SaveRequest | None:
        for push in update.pushes:
            self.applied.update(push.record.tickets)
        return super().after_update(update, learning_rate)

    def after_loss(self, worker: int, *, is_last: bool) -> None:
        self.lost.append(worker)
        self.is_stuck = is_last


class Mortal(Client):
    """A client whose process kills itself at a moment of its life: lock, draw, offer, write, announce or rest."""

    moment = ""

    def _die_at(self, moment: str) -> None:
        if moment == self.moment and (self.num_pushed >= PUSHES_BEFORE or moment in ("offer", "rest")):
            os.kill(os.getpid(), signal.SIGKILL)

    def draw(self) -> int:
        words = self._link.control._window
        assert isinstance(words, SharedControlWindow)
        with words._alone():
            self._die_at("lock")
        number = super().draw()
        self._die_at("draw")
        return number

    def take_offer(self) -> int:
        ticket = super().take_offer()
        self._die_at("offer")
        return ticket

    def write(self, gradient: torch.Tensor, part: Shard) -> None:
        super().write(gradient, part)
        if self.moment == "write" and self.num_pushed >= PUSHES_BEFORE:
            gradient[part.stop // 2 :] = torch.nan  # it has not come further
        self._die_at("write")

    def wait(self) -> bool:
        self._die_at("announce")
        return super().wait()

    def rest(self) -> bool:
        if self.moment == "rest":
            self._link.control.tell_coordinator(ControlWords.rests(self._worker), self.working.rest())
        self._die_at("rest")
        return super().rest()


def await_pushes(client: Client, coordinator: int, workers: Collection[int]) -> None:
    """Until those who are to die have pushed as much as they do before that."""
    words = client._link.control._window
    assert isinstance(words, SharedControlWindow)
    while any(words.read(coordinator, ControlWords.announced(worker)) < PUSHES_BEFORE for worker in workers):
        time.sleep(0.001)


def wait_for_deaths(watch: LifeWatch, ranks: Collection[int]) -> None:
    while not watch.dead.keys() >= set(ranks):
        time.sleep(0.001)


def work(client: Client, flat: FlatParameters, await_deaths: Callable[[], object]) -> None:
    """Push gradients of ones until there is nothing left to do; wait for deaths in between."""
    plan = cast(BatchPlan, SimpleNamespace(locate=lambda ticket: divmod(ticket, NUM_TICKETS)))
    private = flat.gradient
    exchange = AsynchronousExchange(client, flat, BatchOrder(TicketSequence(), plan, 1), Timeline())
    is_left_behind = client._link.num_vectors > 0
    assert is_left_behind != client._link.is_mapped, "what a dead worker has announced lies in its own window of MPI"
    assert (flat.gradient is not private) == is_left_behind
    exchange.pull(flat.parameters)
    while not exchange.is_finished:
        if client.num_pushed == PUSHES_MEANWHILE:
            await_deaths()
        drawn = [ticket for _ in range(NUM_LOCAL) if (ticket := exchange.draw()) is not None]
        flat.gradient.fill_(float(len(drawn)))
        exchange.push(flat.gradient, PushRecord(exchange.version, len(drawn), 0.0, 0, 0.0, tuple(drawn)))
        exchange.pull(flat.parameters)
    exchange.close()


def main() -> None:
    comm = MPI.COMM_WORLD
    moments = dict(enumerate(sys.argv[3:], start=1))
    roles = assign_roles(gather_hosts(comm), NUM_SERVERS)
    names = [f"rank {rank}" for rank in range(comm.size)]
    watch = LifeWatch(comm, roles.hosts, names, EXIT_CODE, coordinator=roles.coordinator_rank)
    if comm.rank in roles.server_ranks[1:]:
        liveness._DEALING_SECONDS = 0.0  # it is for the coordinator to deal with deaths, and to say that nobody does
    torch.manual_seed(1)
    flat = FlatParameters(torch.nn.Linear(64, 4))
    options = EngineOptions(
        num_servers=NUM_SERVERS,
        pushes_per_update=2,
        pull=cast(PullPolicy, sys.argv[1]),
        may_lose_workers=True,
        link=LinkOptions(max_tickets=NUM_LOCAL, window=cast(WindowKind, sys.argv[2])),
    )
    engine = Engine(
        comm,
        flat.parameters,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        options,
        EngineSetup(roles=roles, on_start=lambda: watch.may_lose(roles.worker_ranks)),
    )
    recording = Recording()
    if engine.is_coordinator:
        dead = lambda: [roles.worker_ranks.index(rank) for rank in watch.dead]  # noqa: E731
        engine.serve(
            recording, recording, LostWorkers(LostWork(comm.size - NUM_SERVERS, TicketSequence(), NUM_TICKETS), dead)
        )
        applied = sorted(recording.applied.elements())
        result = {"applied": applied, "lost": recording.lost, "is_stuck": recording.is_stuck}
        print(json.dumps({**result, "final": recording.final.sum().item() if recording.final is not None else None}))
        sys.stdout.flush()
    elif engine.is_server:
        engine.serve(None, recording)
    else:
        engine.client.__class__ = Mortal
        cast(Mortal, engine.client).moment = moments.get(roles.worker_ranks.index(comm.rank), "")
        engine.start()
        doomed = set[int]()
        if roles.worker_ranks[0] == comm.rank:
            await_pushes(engine.client, roles.coordinator_rank, moments)
            # Those that rest, or take an offer, do so at the end, or never.
            doomed = {roles.worker_ranks[worker] for worker, at in moments.items() if at not in ("rest", "offer")}
        work(engine.client, flat, lambda: wait_for_deaths(watch, doomed))
    exit_code = engine.close()
    watch.ended(exit_code if engine.is_coordinator else 0)


if __name__ == "__main__":
    main()
