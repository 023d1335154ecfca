"""Every batch is done exactly once, whoever dies whenever: the real decisions, and workers in random order."""

import random
from collections import Counter

import pytest

from hpcasync.ps.protocol.lost_work import LostWork, Offer
from hpcasync.ps.protocol.tickets import TicketSequence


class World:
    """Workers as the coordinator knows them: what they draw at once, what they push it sees later."""

    def __init__(self, seed: int, num_workers: int, tickets: TicketSequence, end: int, num_local: int) -> None:
        self.random = random.Random(seed)
        self.tickets, self.end, self.num_local = tickets, end, num_local
        self.work = LostWork(num_workers, tickets, end)
        self.cursor = 0
        self.live = set(range(num_workers))
        self.resting: set[int] = set()
        self.held: dict[int, list[int]] = {worker: [] for worker in range(num_workers)}
        self.messages: dict[int, list[list[int] | None]] = {worker: [] for worker in range(num_workers)}
        self.offered: dict[int, int] = {}
        self.done: Counter[int] = Counter()

    def draw(self, worker: int) -> int | None:
        if worker in self.offered:
            return self.offered.pop(worker)
        ticket = self.tickets.ticket(self.cursor)
        self.cursor += 1
        return ticket if ticket < self.end else None

    def step(self, worker: int) -> None:
        """Draw one batch, push those that are held, or rest."""
        if worker in self.resting:
            if worker not in self.offered:
                return
            self.resting.discard(worker)
        ticket = self.draw(worker)
        if ticket is not None:
            self.held[worker].append(ticket)
        is_full = len(self.held[worker]) == self.num_local
        if self.held[worker] and (ticket is None or is_full):
            self.messages[worker].append(self.held[worker])
            self.held[worker] = []
        elif ticket is None:
            self.messages[worker].append(None)
            self.resting.add(worker)

    def see(self, worker: int) -> None:
        """The coordinator takes what the worker has announced, in order."""
        for message in self.messages[worker]:
            if message is None:
                self.work.rests(worker)
            else:
                self.done.update(message)
                self.work.arrived(worker, message)
        self.messages[worker].clear()

    def offer(self) -> None:
        for offer in self.work.offers():
            assert offer.worker in self.live and offer.worker not in self.offered
            self.offered[offer.worker] = offer.ticket

    def die(self, worker: int) -> None:
        self.live.discard(worker)
        self.offered.pop(worker, None)
        self.see(worker)
        self.work.died(worker, self.cursor)

    def run(self, num_deaths: int) -> None:
        for _ in range(100_000):
            if self.work.is_exhausted:
                return
            worker = self.random.choice(sorted(self.live))
            if num_deaths and len(self.live) > 1 and self.random.random() < 0.02:
                num_deaths -= 1
                self.die(worker)
            elif self.random.random() < 0.6:
                self.step(worker)
            else:
                self.see(worker)
                self.offer()
        pytest.fail("no end")


@pytest.mark.parametrize("seed", range(400))
def test_every_batch_is_done_once(seed: int) -> None:
    generator = random.Random(seed)
    num_workers = generator.randint(2, 5)
    again = tuple(sorted(generator.sample(range(20), generator.randint(0, 6))))
    tickets = TicketSequence(again, 20)
    end = 20 + generator.randint(0, 60)
    world = World(seed, num_workers, tickets, end, num_local=generator.randint(1, 3))
    world.run(num_deaths=generator.randint(0, num_workers - 1))
    assert world.done == Counter([*again, *range(20, end)])
    assert world.resting >= world.live, "nobody is let go with work in hand"


def test_what_a_dead_worker_held_waits_until_nobody_else_can_hold_it() -> None:
    work = LostWork(2, TicketSequence(), None)
    work.died(1, num_drawn=3)  # of draws 0, 1, 2 worker 0 holds one, or more
    assert work.offers() == []
    work.arrived(0, (1,))
    assert work.offers() == []
    work.arrived(0, (3,))
    assert work.offers() == [Offer(0, 0, wakes=False)], "one after the other"
    work.arrived(0, (0,))
    assert work.offers() == [Offer(0, 2, wakes=False)]


def test_who_rests_is_woken() -> None:
    work = LostWork(3, TicketSequence(), 4)
    work.arrived(0, (0, 1, 2))
    assert work.rests(0) and work.rests(2)
    assert not work.is_exhausted, "worker 1 has something still"
    work.died(1, num_drawn=6)
    assert work.offers() == [Offer(0, 3, wakes=True)]
    assert not work.is_exhausted
    work.arrived(0, (3,))
    assert work.rests(0) and work.is_exhausted


def test_a_batch_that_arrives_twice_is_a_mistake() -> None:
    work = LostWork(2, TicketSequence((3, 7), 9), None)
    work.arrived(0, (7, 9))
    with pytest.raises(AssertionError, match="twice"):
        work.arrived(1, (7,))


def test_the_last_worker() -> None:
    work = LostWork(1, TicketSequence(), 4)
    work.died(0, num_drawn=2)
    assert work.offers() == [] and work.has_ended and work.num_live == 0 and not work.is_exhausted
