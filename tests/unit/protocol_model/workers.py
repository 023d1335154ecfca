"""The steps of a worker: ps.client and train.asynchronous."""

from collections.abc import Iterator, Sequence
from typing import Any

from hpcasync.ps.protocol.working import Count, Source, before_reuse
from protocol_model import gpus, survivors
from protocol_model.machines import working
from protocol_model.messages import request, take
from protocol_model.options import Options
from protocol_model.world import At, Send, Worker, World, fill, move, put, require, set_server, set_worker, with_slot

# Beyond every version that a pull accepts.
_REFUSED = 99


def worker_steps(options: Options, world: World, index: int) -> Iterator[tuple[str, World]]:
    worker = world.workers[index]
    at = worker.at
    if gpus.has_to_wait(options, worker, index):
        return
    if options.survives and at in (At.PUBLISHED, At.OFFER, At.DRAW, At.REST, At.RESTING):
        yield from survivors.worker_steps(options, world, index)
    elif at is At.RECEIVE:
        yield from _receive_step(options, world, index)
    elif at < At.RECEIVE:
        yield _pull_step(options, world, index)
    elif at is At.DRAW:
        draws = working(options, worker).next_source(0, is_stopping=world.stop) is Source.CURSOR
        has_batch = draws and world.cursor < options.num_tickets
        drawn = world._replace(cursor=min(world.cursor + 1, options.num_tickets)) if draws else world
        if has_batch:
            drawn = gpus.ask_for_gradient(drawn, index, worker.announced + 1)
        at_work = At.AHEAD if options.ahead else At.SLOT
        yield "draws", move(drawn, index, at_work if has_batch else At.FINISH)
    elif at is At.COMPUTE:
        computed = _compute(options, world, index, worker.announced + 1)
        yield "computes in place", move(computed, index, At.OFFER if options.survives else At.DRAW)
    elif at is At.AHEAD:
        yield from _turn(options, world, index)
    elif at is At.SLOT:
        needed = working(options, worker).before_write().value
        servers = world.servers[:1] if "slot check at the coordinator only" in options.bugs else world.servers
        is_free = all(server.consumed[index] >= needed for server in servers) or "no slot check" in options.bugs
        if is_free or world.stop:
            yield "has a slot", move(world, index, At.FINISH if world.stop else At.WRITE)
    elif at is At.WRITE:
        yield f"writes to {worker.server}", _write(options, world, index)
    elif at is At.ANNOUNCE:
        if _has_landed(options, world, index) or "announce before flush" in options.bugs:
            machine = working(options, worker)
            announced = worker._replace(announced=machine.announce(), server=0, held=())
            at = At.PUBLISHED if machine.after_push(worker.version) is None else At.WAIT
            yield "announces", move(set_worker(world, index, announced), index, at)
    elif at is At.WAIT:
        wait = working(options, worker).after_push(worker.version)
        assert wait is not None
        if {Count.SETTLED: worker.settled, Count.HANDLED: worker.handled}[wait.told] >= wait.value or world.stop:
            yield "has waited", move(world, index, At.FINISH if world.stop else At.PUBLISHED)
    elif at is At.FINISH:
        yield "finishes", set_worker(world, index, worker._replace(at=At.DONE, finished=True))


def _pull_step(options: Options, world: World, index: int) -> tuple[str, World]:
    worker = world.workers[index]
    server = world.servers[worker.server]
    far = sorted(options.far)
    near = [number for number in range(options.num_servers) if number not in options.far]
    if worker.at is At.PUBLISHED:
        require(world.published >= worker.version, "the published version went back")
        if world.published == worker.version:
            return "has the published version", set_worker(world, index, _pulled(options, worker))
        if options.hosts > 1:
            whole = gpus.take_parameters(worker._replace(version=world.published))
            return f"pulls {world.published}", set_worker(world, index, _pulled(options, whole))
        worker = worker._replace(target=world.published, read=(), newest=-1)
        worker = worker._replace(**(_first(near, At.BUFFER) if near else _first(far, At.RECEIVE)))
        asked = request(options, world, index, world.published)
        return f"reads published {world.published}", set_worker(asked, index, worker)
    last, after = worker.server == near[-1], worker.server + 1
    if worker.at is At.BUFFER:
        content = server.buffers[worker.target % 2]
        following = _first(near, At.WRITING) if last else _first(near, At.BUFFER, after)
        name = "asks for a buffer" if options.streams else f"reads a buffer of {content}"
        read = gpus.ask_for_shard(worker) if options.streams else worker._replace(read=(*worker.read, content))
        worker = read._replace(**following)
        if last and "no writing check" in options.bugs:
            worker = _accept(options, worker)
        return name, set_worker(world, index, worker)
    newest = max(worker.newest, server.writing)
    if not last:
        worker = worker._replace(newest=newest, **_first(near, At.WRITING, after))
        return "reads writing", set_worker(world, index, worker)
    if far:
        return "reads writing", set_worker(world, index, worker._replace(newest=newest, **_first(far, At.RECEIVE)))
    return _judge(options, world, index, newest)


def _receive_step(options: Options, world: World, index: int) -> Iterator[tuple[str, World]]:
    """What the servers on other nodes have sent is taken, whatever the others have said."""
    worker, far = world.workers[index], sorted(options.far)
    sending, after = take(world, worker.server, index)
    if sending.state not in (Send.SENT, Send.REFUSED):
        return
    is_sent = sending.state is Send.SENT
    worker = worker._replace(
        read=(*worker.read, sending.content) if is_sent else worker.read,
        newest=worker.newest if is_sent else max(worker.newest, worker.target + _REFUSED),
    )
    if worker.server != far[-1]:
        worker = worker._replace(**_first(far, At.RECEIVE, worker.server + 1))
        yield f"receives {sending.content}", set_worker(after, index, worker)
        return
    yield _judge(options, set_worker(after, index, worker), index, worker.newest)


def _first(servers: Sequence[int], at: At, start: int = 0) -> dict[str, Any]:
    return {"at": at, "server": next(server for server in servers if server >= start)}


def _judge(options: Options, world: World, index: int, newest: int) -> tuple[str, World]:
    """Everything has been read: is it one version?"""
    worker = world.workers[index]
    if newest <= worker.target + (2 if "weak writing check" in options.bugs else 1):
        return "accepts the pull", set_worker(world, index, _accept(options, worker))
    return "repeats the pull", move(world, index, At.PUBLISHED)


def _accept(options: Options, worker: Worker) -> Worker:
    """The pull is over: what was read must be one version of all shards."""
    # What a GPU has copied is looked at when it computes with it.
    is_whole = set(worker.read) <= {worker.target} if options.streams else set(worker.read) == {worker.target}
    require(is_whole, f"a pull of version {worker.target} holds {worker.read}")
    worker = gpus.accept(options, worker)
    return _pulled(options, worker._replace(server=0, version=worker.target, target=-1, newest=-1, read=()))


def _pulled(options: Options, worker: Worker) -> Worker:
    require(worker.version >= worker.due, f"version {worker.version} lacks the own push, part of {worker.due}")
    return worker._replace(at=At.COMPUTE if options.in_place and not options.streams else At.DRAW, due=0)


def _compute(options: Options, world: World, index: int, sequence: int) -> World:
    """Begin to fill a vector, all servers' parts of it at once, before it is known whether there is a batch."""
    if options.streams:
        return gpus.ask_for_gradient(world, index, sequence)
    for number in range(options.num_servers):
        world = fill(options, world, index, number, -sequence)
        if options.hosts > 1:  # how it comes bit by bit is explored without them
            world = put(options, world, index, number, sequence)
    return world


def _turn(options: Options, world: World, index: int) -> Iterator[tuple[str, World]]:
    """`Client.turn` before the push: the vector after the next has to have been read. The end leaves them all alone."""
    sequence = world.workers[index].announced + 2
    needed = before_reuse(sequence, options.num_gradients).value
    is_read = all(server.consumed[index] >= needed for server in world.servers)
    require(is_read or options.spare == 1, "a worker waits for a vector that the push before has waited for")
    if world.stop:
        yield "leaves its vectors", move(world, index, At.SLOT)
    elif is_read or "no look at what was read" in options.bugs:
        yield "computes ahead", move(_compute(options, world, index, sequence), index, At.SLOT)


def _write(options: Options, world: World, index: int) -> World:
    """Start to write one server's shard of the gradient, and at the coordinator the record."""
    worker = world.workers[index]
    sequence = worker.announced + 1
    number, slot = worker.server, sequence % options.num_slots
    if options.num_tokens(index, sequence) and not options.in_place:
        copies = options.streams
        world = gpus.ask_to_store(world, index) if copies else fill(options, world, index, number, -sequence)
        worker = world.workers[index]
    if number == 0:
        require(world.servers[0].consumed[index] >= sequence - options.num_slots, "a record was overwritten")
        world = world._replace(records=with_slot(world.records, index, slot, worker.version))
        if options.survives:
            tickets = world.tickets[index]
            row = (*tickets[:slot], worker.held, *tickets[slot + 1 :])
            world = world._replace(tickets=(*world.tickets[:index], row, *world.tickets[index + 1 :]))
    last = number == options.num_servers - 1 or options.in_place
    at, following = (At.ANNOUNCE, 0) if last else (At.WRITE, number + 1)
    return set_worker(world, index, worker._replace(at=at, server=following))


def landings(options: Options, world: World, number: int) -> Iterator[tuple[str, World]]:
    """Writes in flight arrive in any order, also those of a worker that died. A GPU's do in theirs (`gpus`)."""
    server = world.servers[number]
    if options.streams:
        return
    for index, slots in enumerate(server.slots):
        for slot, sequence in enumerate(slots):
            if sequence < 0:
                landed = server._replace(slots=with_slot(server.slots, index, slot, -sequence))
                yield f"worker {index}'s push {-sequence} lands at {number}", set_server(world, number, landed)


def _has_landed(options: Options, world: World, index: int) -> bool:
    gpu = world.workers[index].gpu
    if gpu is not None:
        return not gpu.copying
    slot = (world.workers[index].announced + 1) % options.num_gradients
    return all(server.slots[index][slot] >= 0 for server in world.servers)
