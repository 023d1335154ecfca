"""The steps of the servers: ps.server."""

from collections.abc import Iterator

from protocol_model.decisions import decide, is_finished, should_apply
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
        stopped = world._replace(decisions=decide(options, decisions, "stop", Order(), 0), stop=True)
        yield "coordinator stops", stopped
    if world.leaving != NOBODY:
        yield "coordinator looks again", _let_go(options, world)
        return
    for index, worker in enumerate(world.workers):
        if worker.announced > decisions.received[index]:
            yield f"coordinator receives from {index}", _receive(options, world, index)
        if index not in decisions.active:
            continue
        if "announced read before finished" in options.bugs and not worker.finished:
            yield f"coordinator reads {index}", world._replace(leaving=index, leaving_announced=worker.announced)
        elif worker.finished:
            yield f"coordinator reads finished of {index}", world._replace(leaving=index)
    if is_finished(options, decisions):
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
    return _update_if_due(options, world._replace(decisions=decisions, leaving=NOBODY, leaving_announced=-1), Order())


def _receive(options: Options, world: World, index: int) -> World:
    before = world.decisions
    sequence = before.received[index] + 1
    order = Order(worker=index, sequence=sequence)
    version = world.records[index][sequence % options.num_slots]
    decisions = decide(options, before, "receive", order, version)
    accept = len(decisions.group) > len(before.group)
    return _send(world._replace(decisions=decisions), order._replace(accept=accept))


def _update_if_due(options: Options, world: World, completed_by: Order) -> World:
    before = world.decisions
    if not should_apply(options, before):
        return world
    decisions = decide(options, before, "apply", Order(), 0)
    group = tuple((worker, sequence) for worker, sequence, _, _ in before.group)
    order = Order(worker=completed_by.worker, sequence=completed_by.sequence, version=decisions.version, group=group)
    if "handle before update" in options.bugs and completed_by.worker != NOBODY:
        world = _mark_handled(options, world, completed_by, order.version)
    return _send(world._replace(decisions=decisions), order)


def _handle(options: Options, world: World, order: Order) -> World:
    """The coordinator has executed the order of a push: make the update that it completes, or it is handled."""
    after = _update_if_due(options, world, order)
    return _mark_handled(options, world, order, world.published) if after is world else after


def _mark_handled(options: Options, world: World, push: Order, due: int) -> World:
    if options.pull == "latest":
        return world
    worker = world.workers[push.worker]
    return set_worker(world, push.worker, worker._replace(handled=push.sequence, due=max(worker.due, due)))


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
    order = server.order
    do, name = server.do, f"server {number}: {server.do.name.lower().replace('_', ' ')}"
    if do in (Do.ACCUMULATE, Do.CONSUME):
        server = _take(options, server)
    elif do is Do.PUBLISH:
        if all(other.version == server.order.version for other in world.servers) or "no barrier" in options.bugs:
            yield name, _publish(options, world)
        return
    elif do is Do.SETTLE_FIRST:
        yield name, set_server(_settle(options, world), 0, server._replace(do=Do.PUBLISH))
        return
    else:
        server = _apply(options, server, is_coordinator=number == 0)
    if server.do is Do.REST:
        server = server._replace(order=Order())
    after = set_server(world, number, server)
    yield name, _handle(options, after, order) if number == 0 and server.do is Do.REST else after


def _take(options: Options, server: Server) -> Server:
    """Accumulate the gradient in a slot, then give the slot back."""
    order = server.order
    consumes_first = "consume before accumulate" in options.bugs
    is_consumed = server.consumed[order.worker] == order.sequence
    if server.do is Do.CONSUME or (consumes_first and not is_consumed):
        require(server.consumed[order.worker] == order.sequence - 1, "a push was taken out of order, or twice")
        consumed = list(server.consumed)
        consumed[order.worker] = order.sequence
        return server._replace(consumed=tuple(consumed), do=Do.REST if server.do is Do.CONSUME else Do.ACCUMULATE)
    content = server.slots[order.worker][order.sequence % options.num_slots]
    require(content == order.sequence, f"push {order.sequence} of worker {order.worker} reads {content}")
    total = (*server.sum, (order.worker, order.sequence))
    return server._replace(sum=total, do=Do.REST if consumes_first else Do.CONSUME)


def _apply(options: Options, server: Server, *, is_coordinator: bool) -> Server:
    """One update of a shard: tell that a buffer is being written, write it, then wait for the other shards."""
    version = server.order.version
    if server.do is Do.START_WRITING:
        require(server.sum == server.order.group, f"a shard applies {server.sum}, not {server.order.group}")
        require(version == server.version + 1, "a shard skips or repeats a version")
        is_late = "write before telling" in options.bugs
        return server._replace(do=Do.BEGIN_BUFFER, sum=(), writing=server.writing if is_late else version)
    if server.do is Do.BEGIN_BUFFER:
        return server._replace(do=Do.END_BUFFER, buffers=with_buffer(server.buffers, version, TORN))
    # A follower waits in the barrier for nothing but the coordinator's next order.
    following = (
        (Do.SETTLE_FIRST if "settle before publish" in options.bugs else Do.PUBLISH) if is_coordinator else Do.REST
    )
    return server._replace(
        do=following, writing=version, version=version, buffers=with_buffer(server.buffers, version, version)
    )


def _publish(options: Options, world: World) -> World:
    """All shards have the version: tell the workers, and those of the group that their push is part of it."""
    first = world.servers[0]
    require(first.order.version == world.published + 1, "versions go up by one")
    world = _settle(options, world)._replace(published=first.order.version)
    world = set_server(world, 0, first._replace(do=Do.REST, order=Order()))
    if first.order.worker == NOBODY:
        return world
    return _mark_handled(options, world, first.order, world.published)


def _settle(options: Options, world: World) -> World:
    workers = list(world.workers)
    for index, sequence in world.servers[0].order.group:
        due = world.servers[0].order.version if options.pull == "applied" else workers[index].due
        workers[index] = workers[index]._replace(settled=sequence, due=due)
    return world._replace(workers=tuple(workers))
