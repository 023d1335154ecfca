"""The steps that are there where workers are survived: ps.survival and ps.lost_work decide, the others obey."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache

from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.protocol.lost_work import LostWork
from hpcasync.ps.protocol.tickets import TicketLedger, TicketSequence
from hpcasync.ps.server.lost_workers import LostWorkers
from protocol_model.decisions import content_of, decide, restore
from protocol_model.world import NOBODY, At, Decisions, Options, Order, Survivors, World, move, require, set_worker

Receive = Callable[[Options, World, int], World]


class Words:
    """Takes what the coordinator tells the workers."""

    def __init__(self) -> None:
        self.offered: dict[int, int] = {}
        self.is_exhausted = False

    def offer(self, worker: int, ticket: int) -> None:
        """As a link has it."""
        assert worker not in self.offered, "one offer at a time"
        self.offered[worker] = ticket

    def tell_everybody(self, word: int, value: int) -> None:
        """As a link has it."""
        assert (word, value) == (ControlWords.EXHAUSTED, 1)
        self.is_exhausted = True


def worker_steps(options: Options, world: World, index: int) -> Iterator[tuple[str, World]]:
    """Draw, take what is offered, or rest: train.asynchronous and ps.client."""
    worker = world.workers[index]
    if worker.at is At.PUBLISHED:
        require(world.published >= max(worker.version, worker.due), "the published version went back")
        pulled = worker._replace(version=world.published, due=0)
        at = At.COMPUTE if options.in_place else At.OFFER
        yield f"pulls {world.published}", move(set_worker(world, index, pulled), index, at)
    elif worker.at is At.OFFER and world.stop:
        yield "is told to stop", move(world, index, At.FINISH)
    elif worker.at is At.OFFER and worker.offers > worker.seen:
        taken = set_worker(world, index, worker._replace(seen=worker.offers))
        yield f"takes {worker.offered}", _hold(options, taken, index, worker.offered)
    elif worker.at is At.OFFER:
        yield "sees no offer", move(world, index, At.DRAW) if not worker.has_drawn_all else _go_on(world, index)
    elif worker.at is At.DRAW:
        number, world = world.cursor, world._replace(cursor=world.cursor + 1)
        if number < options.num_tickets:
            yield f"draws {number}", _hold(options, world, index, number)
        else:
            yield "finds the end", _go_on(set_worker(world, index, worker._replace(has_drawn_all=True)), index)
    elif worker.at is At.REST:
        rests = set_worker(world, index, worker._replace(rests=worker.rests + 1))
        yield "rests", move(rests, index, At.RESTING)
    elif worker.at is At.RESTING:
        if worker.offers > worker.seen:
            yield "wakes", move(world, index, At.PUBLISHED)
        if world.stop or world.exhausted:
            yield "hears of the end", move(world, index, At.FINISH)


def _hold(options: Options, world: World, index: int, ticket: int) -> World:
    worker = world.workers[index]
    held = (*worker.held, ticket)
    is_full = len(held) == options.num_local
    return move(set_worker(world, index, worker._replace(held=held)), index, At.SLOT if is_full else At.OFFER)


def _go_on(world: World, index: int) -> World:
    """There is no more to draw: push what there is."""
    return move(world, index, At.SLOT if world.workers[index].held else At.REST)


def coordinator_steps(options: Options, world: World, receive: Receive) -> Iterator[tuple[str, World]]:
    """Between orders, beside receiving: notice who has finished, rests or has died; share what is left undone."""
    known = world.survival
    assert known is not None
    if world.leaving != NOBODY:
        yield "coordinator looks again", _look(options, world, receive)
        return
    num_rests = dict(known.num_rests)
    for index, worker in enumerate(world.workers):
        words = worker.finished, worker.rests, False
        is_news = (worker.finished and index not in known.finished) or worker.rests > num_rests.get(index, 0)
        if is_news and index not in known.let_go:
            yield f"coordinator reads the words of {index}", world._replace(leaving=index, leaving_words=words)
        if worker.dead and index not in known.let_go:
            died = world._replace(leaving=index, leaving_words=(*words[:2], True))
            yield f"coordinator notices the death of {index}", died
    shared = _share(options, world)
    if shared != world:
        yield "coordinator shares", shared


def _look(options: Options, world: World, receive: Receive) -> World:
    """`_take_arrivals_of` a worker, then let it go if it is dead."""
    index = world.leaving
    if world.leaving_announced < 0:
        return world._replace(leaving_announced=world.workers[index].announced)
    has_finished, num_rests, is_dead = world.leaving_words
    is_hasty = is_dead and "let go before arrivals" in options.bugs
    if world.leaving_announced > world.decisions.received[index] and not is_hasty:
        return receive(options, world, index)
    known, is_resting = decide_survival(options, _known(world), "rests", index, num_rests)
    if has_finished or is_resting or is_dead:
        world = world._replace(decisions=decide(options, world.decisions, "finish", Order(worker=index), 0))
    if has_finished:
        known, _ = decide_survival(options, known, "finished", index, 0)
    if is_dead:
        known, _ = decide_survival(options, known, "died", index, world.cursor)
    return world._replace(survival=known, leaving=NOBODY, leaving_announced=-1, leaving_words=(False, 0, False))


def arrived(options: Options, world: World, index: int, sequence: int) -> World:
    """The coordinator has read the record of a push."""
    tickets = world.tickets[index][sequence % options.num_slots]
    known, _ = decide_survival(options, _known(world), "arrived", index, 0, tickets)
    return world._replace(survival=known)


def _share(options: Options, world: World) -> World:
    known, decisions, offered, is_exhausted = share(options, _known(world), world.decisions)
    world = world._replace(survival=known, decisions=decisions, exhausted=world.exhausted or is_exhausted)
    for index, ticket in offered:
        worker = world.workers[index]
        world = set_worker(world, index, worker._replace(offers=worker.offers + 1, offered=ticket))
    return world


def _known(world: World) -> Survivors:
    assert world.survival is not None
    return world.survival


@cache
def decide_survival(
    options: Options, content: Survivors, event: str, worker: int, number: int, tickets: tuple[int, ...] = ()
) -> tuple[Survivors, bool]:
    """What is known after an event, by a `LostWorkers` with this content; whether the worker rests."""
    survival = _restore(options, content)
    is_resting = False
    if event == "arrived":
        survival.work.arrived(worker, tickets)
    elif event == "rests":
        is_resting = survival.rests(worker, number)
    elif event == "finished":
        survival.work.finished(worker)
    else:
        survival.let_go(worker, number)
    return _content_of(survival), is_resting


@cache
def share(
    options: Options, content: Survivors, decisions: Decisions
) -> tuple[Survivors, Decisions, tuple[tuple[int, int], ...], bool]:
    """What is offered to whom now, whether nothing is left to do, and what is known after it."""
    survival, state, words = _restore(options, content), restore(options, decisions), Words()
    survival.share(words, state)  # type: ignore[arg-type]
    return _content_of(survival), content_of(options, state), tuple(words.offered.items()), words.is_exhausted


@cache
def has_ended(options: Options, content: Survivors) -> bool:
    """Whether nobody pushes any more."""
    return _restore(options, content).work.has_ended


def _restore(options: Options, content: Survivors) -> LostWorkers:
    work = LostWork(options.num_workers, TicketSequence(), options.num_tickets)
    work._arrived = TicketLedger(content.low, content.above)
    work._last = list(content.last)
    work._live, work._finished = set(content.live), set(content.finished)
    work._resting, work._have_rested = set(content.resting), set(content.have_rested)
    work._cut, work._lost, work._offered = content.cut, deque(content.lost), dict(content.offered)
    survival = LostWorkers(work, lambda: ())
    survival._lost, survival._num_rests = set(content.let_go), dict(content.num_rests)
    survival._has_told = content.has_told
    return survival


def _content_of(survival: LostWorkers) -> Survivors:
    work = survival.work
    return Survivors(
        work._arrived.low,
        tuple(work._arrived.above),
        tuple(work._last),
        frozenset(work._live),
        frozenset(work._finished),
        frozenset(work._resting),
        frozenset(work._have_rested),
        work._cut,
        tuple(work._lost),
        tuple(sorted(work._offered.items())),
        frozenset(survival._lost),
        tuple(sorted(survival._num_rests.items())),
        survival._has_told,
    )
