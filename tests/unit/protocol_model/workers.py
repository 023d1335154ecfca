"""The steps of a worker: ps.client and train.asynchronous."""

from collections.abc import Iterator

from protocol_model.world import At, Options, Worker, World, move, require, set_server, set_worker, with_slot


def worker_steps(options: Options, world: World, index: int) -> Iterator[tuple[str, World]]:
    worker = world.workers[index]
    at = worker.at
    if at <= At.WRITING:
        yield _pull_step(options, world, index)
    elif at is At.DRAW:
        has_batch = not world.stop and world.cursor < options.num_tickets
        drawn = world if world.stop else world._replace(cursor=min(world.cursor + 1, options.num_tickets))
        yield "draws", move(drawn, index, At.SLOT if has_batch else At.FINISH)
    elif at is At.SLOT:
        needed = worker.announced + 1 - options.num_slots
        servers = world.servers[:1] if "slot check at the coordinator only" in options.bugs else world.servers
        is_free = all(server.consumed[index] >= needed for server in servers) or "no slot check" in options.bugs
        if is_free or world.stop:
            yield "has a slot", move(world, index, At.FINISH if world.stop else At.WRITE)
    elif at is At.WRITE:
        yield f"writes to {worker.server}", _write(options, world, index)
    elif at is At.ANNOUNCE:
        if _has_landed(options, world, index) or "announce before flush" in options.bugs:
            waits = options.pull != "latest"
            announced = worker._replace(announced=worker.announced + 1, server=0)
            yield "announces", move(set_worker(world, index, announced), index, At.WAIT if waits else At.PUBLISHED)
    elif at is At.WAIT:
        word = worker.settled if options.waits_for(index, worker.announced) == "applied" else worker.handled
        if word == worker.announced or world.stop:
            yield "has waited", move(world, index, At.FINISH if world.stop else At.PUBLISHED)
    elif at is At.FINISH:
        yield "finishes", set_worker(world, index, worker._replace(at=At.DONE, finished=True))


def _pull_step(options: Options, world: World, index: int) -> tuple[str, World]:
    worker = world.workers[index]
    server = world.servers[worker.server]
    if worker.at is At.PUBLISHED:
        require(world.published >= worker.version, "the published version went back")
        if world.published == worker.version:
            return "has the published version", set_worker(world, index, _pulled(options, worker))
        worker = worker._replace(at=At.BUFFER, server=0, target=world.published, read=(), newest=-1)
        return f"reads published {world.published}", set_worker(world, index, worker)
    last = worker.server == options.num_servers - 1
    if worker.at is At.BUFFER:
        content = server.buffers[worker.target % 2]
        at, following = (At.WRITING, 0) if last else (At.BUFFER, worker.server + 1)
        worker = worker._replace(at=at, server=following, read=(*worker.read, content))
        if last and "no writing check" in options.bugs:
            worker = _accept(options, worker)
        return f"reads a buffer of {content}", set_worker(world, index, worker)
    newest = max(worker.newest, server.writing)
    if not last:
        return "reads writing", set_worker(world, index, worker._replace(server=worker.server + 1, newest=newest))
    if newest <= worker.target + (2 if "weak writing check" in options.bugs else 1):
        return "accepts the pull", set_worker(world, index, _accept(options, worker))
    return "repeats the pull", move(world, index, At.PUBLISHED)


def _accept(options: Options, worker: Worker) -> Worker:
    """The pull is over: what was read must be one version of all shards."""
    require(set(worker.read) == {worker.target}, f"a pull of version {worker.target} holds {worker.read}")
    return _pulled(options, worker._replace(server=0, version=worker.target, target=-1, newest=-1, read=()))


def _pulled(options: Options, worker: Worker) -> Worker:
    require(worker.version >= worker.due, f"version {worker.version} lacks the own push, part of {worker.due}")
    return worker._replace(at=At.DRAW, due=0)


def _write(options: Options, world: World, index: int) -> World:
    """Start to write one server's shard of the gradient, and at the coordinator the record."""
    worker = world.workers[index]
    sequence = worker.announced + 1
    number, slot = worker.server, sequence % options.num_slots
    server = world.servers[number]
    if options.num_tokens(index, sequence):
        require(abs(server.slots[index][slot]) <= server.consumed[index], "a slot was written before it was consumed")
        world = set_server(world, number, server._replace(slots=with_slot(server.slots, index, slot, -sequence)))
    if number == 0:
        require(world.servers[0].consumed[index] >= sequence - options.num_slots, "a record was overwritten")
        world = world._replace(records=with_slot(world.records, index, slot, worker.version))
    last = number == options.num_servers - 1
    at, following = (At.ANNOUNCE, 0) if last else (At.WRITE, number + 1)
    return set_worker(world, index, worker._replace(at=at, server=following))


def landings(world: World, number: int) -> Iterator[tuple[str, World]]:
    """Writes in flight arrive in any order, also those of a worker that died."""
    server = world.servers[number]
    for index, slots in enumerate(server.slots):
        for slot, sequence in enumerate(slots):
            if sequence < 0:
                landed = server._replace(slots=with_slot(server.slots, index, slot, -sequence))
                yield f"worker {index}'s push {-sequence} lands at {number}", set_server(world, number, landed)


def _has_landed(options: Options, world: World, index: int) -> bool:
    slot = (world.workers[index].announced + 1) % options.num_slots
    return all(server.slots[index][slot] >= 0 for server in world.servers)
