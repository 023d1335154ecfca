"""The steps of the servers: ps.server."""

from collections.abc import Iterator

from protocol_model import survivors
from protocol_model.decisions import decide, is_finished, should_apply
from protocol_model.messages import before_writing
from protocol_model.world import (
    NOBODY,
    TORN,
    Do,
    Options,
    Order,
    Server,
    World,
    require,
    set_server,
    set_worker,
    with_buffer,
)


def coordinator_steps(options: Options, world: World) -> Iterator[tuple[str, World]]:
    """Between orders: look for arrivals, end training, end the run."""
    decisions = world.decisions
    if options.may_stop and not decisions.is_stopping:
        stopped = world._replace(decisions=decide(options, decisions, "stop", Order(), 0))
        yield "coordinator stops", _send(stopped, Order())
    if options.survives:
        yield from survivors.coordinator_steps(options, world, _receive)
        if world.leaving != NOBODY:
            return
        advanced = _advance(options, world)
        if advanced != world:
            yield "coordinator advances", advanced
    elif world.leaving != NOBODY:
        yield "coordinator looks again", _let_go(options, world)
        return
    for index, worker in enumerate(world.workers):
        is_known_dead = world.survival is not None and index in world.survival.let_go
        if worker.announced > decisions.received[index] and not is_known_dead:
            yield f"coordinator receives from {index}", _receive(options, world, index)
        if options.survives or index not in decisions.active:
            continue
        if "announced read before finished" in options.bugs and not worker.finished:
            yield f"coordinator reads {index}", world._replace(leaving=index, leaving_announced=worker.announced)
        elif worker.finished:
            yield f"coordinator reads finished of {index}", world._replace(leaving=index)
    is_awake = world.survival is not None and not survivors.has_ended(options, world.survival)
    if is_finished(options, decisions) and not is_awake:
        ended = world.servers[0]._replace(do=Do.END)
        yield "coordinator ends the run", set_server(world, 0, ended)


def _let_go(options: Options, world: World) -> World:
    """Take what a finished worker has pushed, then let it go."""
    index = world.leaving
    worker = world.workers[index]
    announced = worker.announced if world.leaving_announced < 0 else world.leaving_announced
    if announced > world.decisions.received[index]:
        return _receive(options, world, index)
    if not worker.finished:
        return world._replace(leaving=NOBODY, leaving_announced=-1)
    decisions = decide(options, world.decisions, "finish", Order(worker=index), 0)
    return _advance(options, world._replace(decisions=decisions, leaving=NOBODY, leaving_announced=-1))


def _receive(options: Options, world: World, index: int) -> World:
    before = world.decisions
    sequence = before.received[index] + 1
    order = Order(worker=index, sequence=sequence)
    version = world.records[index][sequence % options.num_slots]
    if options.survives:
        world = survivors.arrived(options, world, index, sequence)
    decisions = decide(options, before, "receive", order, version)
    accept = len(decisions.group) > len(before.group)
    return _send(world._replace(decisions=decisions), order._replace(accept=accept))


def _advance(options: Options, world: World) -> World:
    """The coordinator is between orders: make the update that is due, or tell the workers what is handled."""
    before = world.decisions
    if not should_apply(options, before):
        return _tell(options, world)
    decisions = decide(options, before, "apply", Order(), 0)
    group = tuple((worker, sequence) for worker, sequence, _, _ in before.group)
    order = Order(version=decisions.version, group=group)
    world = world._replace(decisions=decisions)
    if "handle before update" in options.bugs:
        world = _tell(options, world, due=order.version)
    return _send(world, order)


def _tell(options: Options, world: World, due: int = 0) -> World:
    before = world.decisions
    decisions = decide(options, before, "tell", Order(), 0)
    world = world._replace(decisions=decisions)
    if options.pull == "latest":
        return world
    for index, sequence in before.untold:
        if (index, sequence) not in decisions.untold:
            worker = world.workers[index]
            due = max(worker.due, due or world.published)
            world = set_worker(world, index, worker._replace(handled=sequence, due=due))
    return world


def _send(world: World, order: Order) -> World:
    first, *others = world.servers
    first = first._replace(do=order.first_step, order=order)
    return world._replace(servers=(first, *(other._replace(queue=(*other.queue, order)) for other in others)))


def follower_steps(world: World, number: int) -> Iterator[tuple[str, World]]:
    server = world.servers[number]
    if server.queue:
        order, *queue = server.queue
        yield (
            f"server {number} takes an order",
            set_server(world, number, server._replace(do=order.first_step, order=order, queue=tuple(queue))),
        )
    elif world.servers[0].do is Do.END:
        yield f"server {number} ends", set_server(world, number, server._replace(do=Do.END))


def execute(options: Options, world: World, number: int) -> Iterator[tuple[str, World]]:
    """The next step of a server in the order that it executes."""
    server = world.servers[number]
    do, name = server.do, f"server {number}: {server.do.name.lower().replace('_', ' ')}"
    if do in (Do.TAKE, Do.READ, Do.CONSUME):
        server = _take(options, server, is_coordinator=number == 0)
    elif do is Do.DISCARD:
        server = _consume(server._replace(do=Do.REST, sum=(), read=server.unread, unread=()))
        world = world._replace(stop=world.stop or number == 0)
    elif do is Do.PUBLISH:
        if all(other.version == server.order.version for other in world.servers) or "no barrier" in options.bugs:
            yield name, _publish(options, world)
        return
    elif do is Do.SETTLE_FIRST:
        yield name, set_server(_settle(options, world), 0, server._replace(do=Do.PUBLISH))
        return
    else:
        server = _apply(options, server)
    if server.do is Do.REST:
        server = server._replace(order=Order())
    after = set_server(world, number, server)
    yield name, _advance(options, after) if number == 0 and server.do is Do.REST else after


def _take(options: Options, server: Server, *, is_coordinator: bool) -> Server:
    """Take note of a push, read the slots if its worker needs them, give back those that have been read."""
    order = server.order
    push = order.worker, order.sequence
    if server.do is Do.TAKE:
        server = server._replace(unread=(*server.unread, push))
        if "consume before accumulate" in options.bugs:
            server = _consume(server._replace(read=(push,)))
        num_taken = sum(worker == order.worker for worker, _ in server.unread)
        return server._replace(do=Do.READ if num_taken == options.num_slots else Do.REST)
    if server.do is Do.READ:
        read = server.unread if order.accept else (*server.unread, push)
        return _read(options, server)._replace(do=Do.CONSUME, read=read)
    following = Do.REST
    if order.version and is_coordinator:
        following = Do.SETTLE_FIRST if "settle before publish" in options.bugs else Do.PUBLISH
    is_done = "consume before accumulate" in options.bugs and (order.accept or bool(order.version))
    return (server._replace(read=()) if is_done else _consume(server))._replace(do=following)


def _read(options: Options, server: Server) -> Server:
    """Read the slots of the group: each must still hold its push."""
    for worker, sequence in server.unread:
        content = server.slots[worker][sequence % options.num_gradients]
        require(content == sequence, f"push {sequence} of worker {worker} reads {content}")
    return server._replace(sum=(*server.sum, *server.unread), unread=())


def _consume(server: Server) -> Server:
    consumed = list(server.consumed)
    for worker, sequence in server.read:
        require(consumed[worker] == sequence - 1, "a push was taken out of order, or twice")
        consumed[worker] = sequence
    return server._replace(consumed=tuple(consumed), read=())


def _apply(options: Options, server: Server) -> Server:
    """One update of a shard: tell that a buffer is being written, write it, give the slots back.

    Only the coordinator then waits for the other shards: a follower in the barrier waits for its next order alone.
    """
    version = server.order.version
    if server.do is Do.START_WRITING:
        server = _read(options, before_writing(options, server, version))._replace(read=server.unread)
        require(server.sum == server.order.group, f"a shard applies {server.sum}, not {server.order.group}")
        require(version == server.version + 1, "a shard skips or repeats a version")
        is_late = "write before telling" in options.bugs
        return server._replace(do=Do.BEGIN_BUFFER, sum=(), writing=server.writing if is_late else version)
    if server.do is Do.BEGIN_BUFFER:
        return server._replace(do=Do.END_BUFFER, buffers=with_buffer(server.buffers, version, TORN))
    return server._replace(
        do=Do.CONSUME, writing=version, version=version, buffers=with_buffer(server.buffers, version, version)
    )


def _publish(options: Options, world: World) -> World:
    """All shards have the version: tell the workers, and those of the group that their push is part of it."""
    first = world.servers[0]
    require(first.order.version == world.published + 1, "versions go up by one")
    world = _settle(options, world)._replace(published=first.order.version)
    return _tell(options, set_server(world, 0, first._replace(do=Do.REST, order=Order())))


def _settle(options: Options, world: World) -> World:
    workers = list(world.workers)
    for index, sequence in world.servers[0].order.group:
        due = world.servers[0].order.version if options.pull == "applied" else workers[index].due
        workers[index] = workers[index]._replace(settled=sequence, due=due)
    return world._replace(workers=tuple(workers))
