"""The steps of the servers: ps.server."""

from collections.abc import Iterator

from hpcasync.ps.protocol import orders
from hpcasync.ps.protocol.coordination import (
    Apply,
    Dropped,
    Effect,
    Exhausted,
    Handled,
    Publish,
    Report,
    Settled,
    Stop,
)
from hpcasync.ps.protocol.lost_work import Offer
from hpcasync.ps.protocol.orders import Kind
from hpcasync.ps.protocol.slots import Step
from protocol_model import hosts, survivors
from protocol_model.kernels import launch, read
from protocol_model.machines import drive, is_finished, ledger, record_of
from protocol_model.messages import before_writing
from protocol_model.options import Options
from protocol_model.world import NOBODY, At, Do, Kernel, Order, Server, World, require, set_server, set_worker

_FIRST = {
    Step.TAKE: Do.TAKE,
    Step.FOLD: Do.READ,
    Step.CONSUME: Do.CONSUME,
    Step.APPLY: Do.START_WRITING,
    Step.PUBLISH: Do.PUBLISH,
    Step.CLEAR: Do.DISCARD,
    Step.EXCHANGE: Do.SUM,
    Step.COMPLETE: Do.COMPLETE,
}


def coordinator_steps(options: Options, world: World) -> Iterator[tuple[str, World]]:
    """Between orders: look for arrivals, end training, end the run."""
    decisions = world.decisions
    if options.may_stop and not decisions.is_stopping:
        yield "coordinator stops", carry_out(options, *drive(options, world, "stop"))
    if options.survives:
        yield from survivors.coordinator_steps(options, world, receive, carry_out)
        if world.leaving != NOBODY:
            return
        advanced = _advance(options, world)
        if advanced != world:
            yield "coordinator advances", advanced
    elif world.leaving != NOBODY:
        yield "coordinator looks again", _look(options, world)
        return
    for index, worker in enumerate(world.workers):
        is_known_dead = world.survival is not None and index in world.survival.let_go
        if worker.announced > decisions.received[index] and not is_known_dead:
            yield f"coordinator receives from {index}", receive(options, world, index)
        if options.survives or index not in decisions.active:
            continue
        if "announced read before finished" in options.bugs and not worker.finished:
            yield f"coordinator reads {index}", world._replace(leaving=index, leaving_announced=worker.announced)
        elif worker.finished:
            yield f"coordinator reads finished of {index}", world._replace(leaving=index)
    yield from _idle_step(options, world, 0)
    if is_finished(options, decisions, world.survival):
        ended = world.servers[0]._replace(do=Do.END)
        yield "coordinator ends the run", set_server(world, 0, ended)


def _look(options: Options, world: World) -> World:
    """Take what a finished worker has pushed, then let it go."""
    index = world.leaving
    worker = world.workers[index]
    announced = worker.announced if world.leaving_announced < 0 else world.leaving_announced
    if announced > world.decisions.received[index]:
        return receive(options, world, index)
    world = world._replace(leaving=NOBODY, leaving_announced=-1)
    if not worker.finished:
        return world
    looked = carry_out(options, *drive(options, world, "look", index, has_finished=True))
    return _advance(options, looked)


def receive(options: Options, world: World, index: int) -> World:
    """The coordinator reads the record of a push."""
    sequence = world.decisions.received[index] + 1
    slot = sequence % options.num_slots
    tickets = world.tickets[index][slot] if options.survives else ()
    record = record_of(world.records[index][slot], options.num_tokens(index, sequence), tickets)
    return carry_out(options, *drive(options, world, "receive", index, record))


def _advance(options: Options, world: World) -> World:
    """The coordinator is between orders: make the update that is due, or tell the workers what is handled."""
    world, effects = drive(options, world, "advance")
    if "handle before update" in options.bugs and effects and isinstance(effects[0], Apply):
        told = tuple(effect for effect in effects if isinstance(effect, Handled))
        world = carry_out(options, world, told, due=world.decisions.version)
    return carry_out(options, world, effects)


def carry_out(options: Options, world: World, effects: tuple[Effect, ...], due: int = 0) -> World:
    """Carry out what the coordinator has decided, up to an order; what comes after it waits until it is executed.

    Args:
        due: the version that workers must see that are told now; default: the published one.
    """
    for number, effect in enumerate(effects, 1):
        match effect:
            case orders.Order(kind, worker, sequence):
                sent = _send(options, world, Order(kind, worker if kind is not Kind.DISCARD else NOBODY, sequence))
                return sent._replace(pending=_that_matter(effects[number:]))
            case Apply(update):
                _check_update(options, update.version - 1, update.staleness)
                group = tuple((push.worker, push.sequence) for push in update.pushes)
                sent = _send(options, world, Order(Kind.APPLY, version=update.version, group=group))
                return sent._replace(pending=_that_matter(effects[number:]))
            case Publish(version):
                require(version == world.published + 1, "versions go up by one")
                world = world._replace(published=version)
            case Settled(index, sequence):
                told = world.workers[index]
                is_applied = options.pull == "applied" and (index, sequence) in world.servers[0].order.group
                newest = world.servers[0].order.version if is_applied else told.due
                world = set_worker(world, index, told._replace(settled=sequence, due=newest))
            case Handled(index, sequence) if options.pull != "latest" or options.fresh_updates:
                told = world.workers[index]
                newest = max(told.due, due or world.published) if told.at is At.WAIT else told.due
                world = set_worker(world, index, told._replace(handled=sequence, due=newest))
            case Offer(index, ticket):
                told = world.workers[index]
                world = set_worker(world, index, told._replace(offers=told.offers + 1, offered=ticket))
            case Exhausted():
                world = world._replace(exhausted=True)
            case Stop():
                world = world._replace(stop=True)
    return world


def _that_matter(effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
    """Without what is told to the program: it would tell states apart that are the same."""
    return tuple(effect for effect in effects if not isinstance(effect, Report | Dropped))


def _check_update(options: Options, before: int, staleness: list[int]) -> None:
    require(min(staleness) >= 0, "a gradient is older than its parameters")
    if before < options.fresh_updates and options.pushes_per_update >= options.num_workers:
        require(max(staleness) == 0, "a stale gradient in the fresh start")
    if options.limit is not None and options.policy != "scale":
        require(max(staleness) <= options.limit, f"a gradient is {max(staleness)} updates stale")


def _send(options: Options, world: World, order: Order) -> World:
    first, *others = world.servers
    queued = (other._replace(queue=(*other.queue, order)) for other in others)
    return world._replace(servers=(_begin(options, first, order, is_coordinator=True), *queued))


def _begin(options: Options, server: Server, order: Order, *, is_coordinator: bool) -> Server:
    slots = ledger(options, server.held)
    steps = list(slots.steps(order))  # type: ignore[arg-type]
    if not options.streams:
        # A server that is not the coordinator waits for nobody, and tells its version with the last byte of it.
        left_out = (Step.COMPLETE,) if is_coordinator else (Step.COMPLETE, Step.PUBLISH)
        steps = [step for step in steps if step not in left_out]
    server = server._replace(order=order, held=tuple(slots.held), steps=tuple(steps[1:]))
    return server._replace(do=_FIRST[steps[0]])


def _next(server: Server) -> Server:
    """The step after the present one."""
    if not server.steps:
        return server._replace(do=Do.REST)
    return server._replace(do=_FIRST[server.steps[0]], steps=server.steps[1:])


def _idle_step(options: Options, world: World, number: int) -> Iterator[tuple[str, World]]:
    server = world.servers[number]
    if options.reads_idle and server.held:
        begun = _begin(options, server, Order(Kind.READ), is_coordinator=number == 0)
        yield f"server {number} reads while idle", set_server(world, number, begun)


def follower_steps(options: Options, world: World, number: int) -> Iterator[tuple[str, World]]:
    server = world.servers[number]
    if server.queue:
        order, *queue = server.queue
        begun = _begin(options, server, order, is_coordinator=False)
        yield f"server {number} takes an order", set_server(world, number, begun._replace(queue=tuple(queue)))
    else:
        yield from _idle_step(options, world, number)
    if not server.queue and world.servers[0].do is Do.END:
        yield f"server {number} ends", set_server(world, number, server._replace(do=Do.END))


def execute(options: Options, world: World, number: int) -> Iterator[tuple[str, World]]:
    """The next step of a server in the order that it executes."""
    server = world.servers[number]
    if server.do is Do.SEND and server.stream and "no wait for what leaves" not in options.bugs:
        return
    if server.do is Do.COMPLETE:
        if server.stream:
            return
        server = _next(server)
        world = set_server(world, number, server)
    name = f"server {number}: {server.do.name.lower().replace('_', ' ')}"
    if server.do is Do.PUBLISH:
        is_early = any(other.version != server.order.version for other in world.servers[1:])
        if number == 0 and is_early and "no barrier" not in options.bugs:
            return
        server = _next(server._replace(version=server.order.version))
    elif server.do is Do.RECEIVE:
        received = hosts.receive(options, server)
        if received is None:
            return
        server = _step(options, set_server(world, number, _next(received)), number)
    elif server.do is Do.SETTLE_FIRST:
        settled = tuple(effect for effect in world.pending if isinstance(effect, Settled))
        world, server = carry_out(options, world, settled), server._replace(do=Do.PUBLISH)
        world = set_server(world, 0, server)
        yield name, world
        return
    elif server.do is Do.SUM:
        server = _step(options, world, number)
        if not server.stream:
            server = hosts.send(options, number, server)
    elif server.do is Do.SEND:
        server = hosts.send(options, number, server)
    elif server.do is not Do.REST:
        server = _step(options, world, number)
    after = set_server(world, number, server)
    if server.do is not Do.REST:
        yield name, after
        return
    if number == 0:
        after = carry_out(options, after._replace(pending=()), after.pending)
        after = _advance(options, set_server(after, 0, after.servers[0]._replace(order=Order())))
    else:
        after = set_server(after, number, server._replace(order=Order()))
    yield name, after


def _step(options: Options, world: World, number: int) -> Server:
    server = world.servers[number]
    order = server.order
    if server.do is Do.TAKE:
        if server.host is not None:
            server = hosts.take(options, number, server)
        if "consume before accumulate" in options.bugs:
            server = _give_back(server, [(order.worker, order.sequence)])
        return _next(server)
    if server.do is Do.READ:
        is_for_others = "sums stay in slots" not in options.bugs
        return _next(read(options, world, number, is_own=True, is_for_others=is_for_others))
    if server.do is Do.SUM:
        return read(options, world, number, is_own=False, is_for_others=True)._replace(do=Do.SEND)
    if server.do is Do.DISCARD:  # with the step after it
        if server.host is not None:
            server = hosts.clear(options, number, server)
        return _next(_consume(options, _next(server._replace(sum=()))))
    if server.do is Do.CONSUME:
        server = _next(_consume(options, server))
        is_early = server.do is Do.PUBLISH and "settle before publish" in options.bugs
        return server._replace(do=Do.SETTLE_FIRST) if is_early else server
    return _apply(options, world, number)


def _consume(options: Options, server: Server) -> Server:
    slots = ledger(options, server.held)
    given = slots.consume(server.order)  # type: ignore[arg-type]
    if "consume before accumulate" in options.bugs and server.order.kind in (Kind.ACCUMULATE, Kind.APPLY):
        given = []
    return _give_back(server._replace(held=tuple(slots.held)), given)


def _give_back(server: Server, pushes: list[tuple[int, int]]) -> Server:
    consumed = list(server.consumed)
    for worker, sequence in pushes:
        require(consumed[worker] == sequence - 1, "a push was taken out of order, or twice")
        consumed[worker] = sequence
    return server._replace(consumed=tuple(consumed))


def _apply(options: Options, world: World, number: int) -> Server:
    """One update of a shard: tell that a buffer is being written, write it; then slots are given back.

    Only the coordinator then waits for the other shards: a follower in the barrier waits for its next order alone.
    """
    server = world.servers[number]
    order = server.order
    begin, end = (Kernel(do, order.group, order.version) for do in (Do.BEGIN_BUFFER, Do.END_BUFFER))
    if server.do is Do.START_WRITING:
        require(order.version == server.version + 1, "a shard skips or repeats a version")
        server = read(options, world, number, is_own=True, is_for_others=False)
        server = before_writing(options, server, order.version)
        is_late = "write before telling" in options.bugs
        server = server._replace(do=Do.BEGIN_BUFFER, writing=server.writing if is_late else order.version)
        if not options.streams:
            return server
        server = server._replace(stream=(*server.stream, begin, end))
        return server._replace(do=Do.END_BUFFER) if is_late else _next(server)
    if server.do is Do.BEGIN_BUFFER:
        return launch(options, world, number, begin)._replace(do=Do.END_BUFFER)
    if options.streams:
        return _next(server._replace(writing=order.version))
    written = launch(options, world, number, end)
    return _next(written._replace(writing=order.version, version=order.version))
