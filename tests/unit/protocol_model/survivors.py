"""The steps that are there where workers are survived: `ps.protocol.coordination` decides, the others obey."""

from collections.abc import Callable, Iterator

from hpcasync.ps.protocol.lost_work import Offer
from hpcasync.ps.protocol.working import Source
from protocol_model.machines import drive, working
from protocol_model.options import Options
from protocol_model.world import NOBODY, At, World, move, require, set_worker

Receive = Callable[[Options, World, int], World]
CarryOut = Callable[..., World]


def worker_steps(options: Options, world: World, index: int) -> Iterator[tuple[str, World]]:
    """Draw, take what is offered, or rest: train.asynchronous and ps.client."""
    worker = world.workers[index]
    machine = working(options, worker)
    if worker.at is At.PUBLISHED:
        require(world.published >= max(worker.version, worker.due), "the published version went back")
        pulled = worker._replace(version=world.published, due=0)
        at = At.COMPUTE if options.in_place else At.OFFER
        yield f"pulls {world.published}", move(set_worker(world, index, pulled), index, at)
    elif worker.at is At.OFFER:
        source = machine.next_source(worker.offers, is_stopping=world.stop)
        if source is Source.END:
            yield "is told to stop", move(world, index, At.FINISH)
        elif source is Source.OFFER:
            taken = set_worker(world, index, worker._replace(seen=machine.take_offer()))
            yield f"takes {worker.offered}", _hold(options, taken, index, worker.offered)
        else:
            yield "sees no offer", move(world, index, At.DRAW) if source is Source.CURSOR else _go_on(world, index)
    elif worker.at is At.DRAW:
        number, world = world.cursor, world._replace(cursor=world.cursor + 1)
        if number < options.num_tickets:
            yield f"draws {number}", _hold(options, world, index, number)
        else:
            assert not machine.drew(has_batch=False), "who may have to do the work of the dead goes on"
            yield "finds the end", _go_on(set_worker(world, index, worker._replace(has_drawn_all=True)), index)
    elif worker.at is At.REST:
        rests = set_worker(world, index, worker._replace(rests=machine.rest()))
        yield "rests", move(rests, index, At.RESTING)
    elif worker.at is At.RESTING:
        if machine.has_offer(worker.offers):
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


def coordinator_steps(
    options: Options, world: World, receive: Receive, carry_out: CarryOut
) -> Iterator[tuple[str, World]]:
    """Between orders, beside receiving: notice who has finished, rests or has died; share what is left undone."""
    known = world.survival
    assert known is not None
    if world.leaving != NOBODY:
        yield "coordinator looks again", _look(options, world, receive, carry_out)
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
    known_after, effects = drive(options, world, "share")
    offered = [effect.worker for effect in effects if isinstance(effect, Offer)]
    assert len(offered) == len(set(offered)), "one offer at a time"
    shared = carry_out(options, known_after, effects)
    if shared != world:
        yield "coordinator shares", shared


def _look(options: Options, world: World, receive: Receive, carry_out: CarryOut) -> World:
    """`_take_arrivals_of` a worker, then let it go if it is dead."""
    index = world.leaving
    if world.leaving_announced < 0:
        return world._replace(leaving_announced=world.workers[index].announced)
    has_finished, num_rests, is_dead = world.leaving_words
    is_hasty = is_dead and "let go before arrivals" in options.bugs
    if world.leaving_announced > world.decisions.received[index] and not is_hasty:
        return receive(options, world, index)
    world = world._replace(leaving=NOBODY, leaving_announced=-1, leaving_words=(False, 0, False))
    looked = drive(options, world, "look", index, has_finished=has_finished, num_rests=num_rests)
    world = carry_out(options, *looked)
    return carry_out(options, *drive(options, world, "let_go", index, world.cursor)) if is_dead else world
