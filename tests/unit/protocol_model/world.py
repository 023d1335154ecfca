"""A model of the protocol between workers and servers, small enough to walk through every interleaving.

One transition is one atomic step of `ps.worker.client` or `ps.server.coordinator`: a read or a write of a control
word, the copy of one shard, an order between servers. A worker's write of a shard is in flight until it lands; only the
flush waits for that. What is done, and in which order, is decided by the machines that run (`machines`). A wait is a
step that is possible once its condition holds, so that the graph of states has no cycle: a run that can always go on
always ends.

To keep the number of states small, a step that nobody else can see, or that commutes with everything between it and
the step before, is part of that step: reading a word that only grows together with the reads beside it, taking an order
with its first effect, storing `settled` and `handled` with what they tell of, deciding on an update with the end of the
order before, a wait for a stream with the step after it.
"""

from enum import IntEnum
from typing import NamedTuple

from hpcasync.ps.protocol.coordination import Effect
from hpcasync.ps.protocol.orders import Kind
from hpcasync.ps.protocol.slots import Step
from protocol_model.options import Options

TORN = -1
NOBODY = -1


class ViolationError(AssertionError):
    """An invariant does not hold."""


class At(IntEnum):
    """What a worker does next. BUFFER, WRITING, RECEIVE, WRITE go server by server; COMPUTE, AHEAD are for in place."""

    PUBLISHED = 0
    BUFFER = 1
    WRITING = 2
    RECEIVE = 3
    DRAW = 4
    SLOT = 5
    WRITE = 6
    ANNOUNCE = 7
    WAIT = 8
    FINISH = 9
    DONE = 10
    OFFER = 11
    REST = 12
    RESTING = 13
    COMPUTE = 14
    AHEAD = 15


class Computation(NamedTuple):
    """A gradient that a GPU has been asked for: from what it takes for this version, in one of its vectors."""

    sequence: int
    version: int
    vector: int
    has_begun: bool = False


class Copy(NamedTuple):
    """A copy that a GPU has been asked for, to or from one server.

    Attributes:
        sequence: of the push whose gradient it is; 0: a part of a pull.
        version: that is pulled, to a vector; `content`: where that has been received already.
    """

    server: int
    sequence: int = 0
    version: int = 0
    vector: int = 0
    content: int | None = None
    has_begun: bool = False


class Gpu(NamedTuple):
    """The memory of a worker's GPU, and what its two streams have been asked for.

    Attributes:
        parameters: vectors that take turns, with the version of each server's part; `current`: computed with.
        gradient: push whose gradient is there to be copied, negative while it is computed.
        num_asked: gradients that it has been asked for.
    """

    parameters: tuple[tuple[int, ...], ...]
    current: int = 0
    gradient: int = 0
    num_asked: int = 0
    computing: tuple[Computation, ...] = ()
    copying: tuple[Copy, ...] = ()


class Worker(NamedTuple):
    """A worker, the words that it writes, and what is written for it.

    Attributes:
        at, server: the next step.
        version: of its parameters.
        target, newest, read: of the pull that goes on.
        announced: its pushes.
        settled, handled: its pushes that are part of a version; that the servers have done their part for.
        due: the version that it must see once it has waited.
        held: batches that it has drawn and not announced.
        has_drawn_all: it has found the corpus at its end.
        offers, offered: how many batches of dead workers have been offered to it, and the last of them.
        seen: offers that it has taken.
        rests: how often it has found no more batches.
    """

    at: At = At.PUBLISHED
    server: int = 0
    version: int = -1
    target: int = -1
    newest: int = -1
    read: tuple[int, ...] = ()
    announced: int = 0
    settled: int = 0
    handled: int = 0
    due: int = 0
    finished: bool = False
    dead: bool = False
    held: tuple[int, ...] = ()
    has_drawn_all: bool = False
    offers: int = 0
    offered: int = -1
    seen: int = 0
    rests: int = 0
    gpu: Gpu | None = None


class Do(IntEnum):
    """What a server does next in the order that it executes: the steps of `ps.protocol.slots`, some in parts."""

    REST = 0
    TAKE = 1
    READ = 2
    CONSUME = 3
    START_WRITING = 4
    BEGIN_BUFFER = 5
    END_BUFFER = 6
    PUBLISH = 7
    SETTLE_FIRST = 8
    DISCARD = 9
    END = 10
    COMPLETE = 11
    SUM = 12
    SEND = 13
    RECEIVE = 14


class Order(NamedTuple):
    """What the checker has to know of an order: one push to accumulate or drop, or a group to apply as `version`."""

    kind: Kind = Kind.DISCARD
    worker: int = NOBODY
    sequence: int = 0
    version: int = 0
    group: tuple[tuple[int, int], ...] = ()


class Send(IntEnum):
    """How far a server on another node is with a worker's pull."""

    IDLE = 0
    ASKED = 1
    PROMISED = 2
    SENT = 3
    REFUSED = 4


class Sending(NamedTuple):
    """A worker's pull at a server on another node; `content` of the copy once it is made."""

    state: Send
    version: int = 0
    content: int = 0


IDLE = Sending(Send.IDLE)


Pushes = tuple[tuple[int, int], ...]


class Kernel(NamedTuple):
    """What a server's GPU has been asked for: to read slots, to begin to write a version, or to end.

    Attributes:
        pushes: to be read for its own shard; or what the version is made of.
        summed: to be read for servers of other hosts.
    """

    do: Do
    pushes: Pushes
    version: int = 0
    summed: Pushes = ()


class HostPart(NamedTuple):
    """Of a server where hosts sum: the content of its `HostGroup`, and its sums.

    Attributes:
        unread: pushes of this host that have not been read for others.
        sums: by server, what has been read for it.
        leaving: servers whose sum has not left yet.
        arrived: by server, the sums that it has sent, in order.
    """

    is_empty: bool
    awaited: frozenset[int]
    unread: Pushes
    sums: tuple[Pushes, ...]
    leaving: frozenset[int]
    senders: tuple[int, ...]
    arrived: tuple[tuple[Pushes, ...], ...]


class Server(NamedTuple):
    """A server and its memory; a slot holds a sequence number, negative while its gradient is in flight.

    In place, a server's slots are its parts of the workers' vectors.

    Attributes:
        steps: what is to be done after `do` in the order.
        sum: pushes that have been read.
        held: pushes whose slots have not been given back (`SlotLedger`).
        sendings: per worker, its pull; none where the server is on the workers' node.
        stream: what its GPU has been asked for, in order.
        host: where hosts sum.
    """

    do: Do
    order: Order
    queue: tuple[Order, ...]
    writing: int
    buffers: tuple[int, int]
    slots: tuple[tuple[int, ...], ...]
    consumed: tuple[int, ...]
    sum: Pushes
    version: int
    steps: tuple[Step, ...] = ()
    held: Pushes = ()
    sendings: tuple[Sending, ...] = ()
    stream: tuple[Kernel, ...] = ()
    host: HostPart | None = None


class Decisions(NamedTuple):
    """The content of an `UpdateState`; a push in the group is (worker, sequence, version, tokens).

    Attributes:
        untold: pushes (worker, sequence) that are not handled yet.
        basis: per worker, the least version that it may be computing from; zeros where nobody asks.
    """

    version: int
    group: tuple[tuple[int, int, int, int], ...]
    active: frozenset[int]
    received: tuple[int, ...]
    is_stopping: bool
    counts: tuple[int, int, int]
    untold: tuple[tuple[int, int], ...]
    basis: tuple[int, ...]


class Survivors(NamedTuple):
    """The content of a `LostWorkers` and its `LostWork`."""

    low: int = 0
    above: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    live: frozenset[int] = frozenset()
    finished: frozenset[int] = frozenset()
    resting: frozenset[int] = frozenset()
    have_rested: frozenset[int] = frozenset()
    cut: int | None = None
    lost: tuple[int, ...] = ()
    offered: tuple[tuple[int, int], ...] = ()
    let_go: frozenset[int] = frozenset()
    num_rests: tuple[tuple[int, int], ...] = ()
    has_told: bool = False


class World(NamedTuple):
    """A state of everything.

    Attributes:
        records: version in the record of every slot.
        leaving: the worker whose `finished` word the coordinator has just read.
        leaving_announced: its pushes, where a seeded mistake has read them before that; where workers are survived, as
            they were read after it.
        leaving_words: its `finished` and `rests`, and whether it is known to be dead, where workers are survived.
        tickets: batches in the record of every slot, where workers are survived.
        survival: what the coordinator knows of the dead, where workers are survived.
        exhausted: the word that says that nothing is left to do.
        pending: effects that the coordinator carries out when the order is executed that it executes.
    """

    workers: tuple[Worker, ...]
    servers: tuple[Server, ...]
    decisions: Decisions
    records: tuple[tuple[int, ...], ...]
    leaving: int
    leaving_announced: int
    published: int
    cursor: int
    stop: bool
    num_dead: int
    tickets: tuple[tuple[tuple[int, ...], ...], ...] = ()
    survival: Survivors | None = None
    leaving_words: tuple[bool, int, bool] = (False, 0, False)
    exhausted: bool = False
    pending: tuple[Effect, ...] = ()


def initial(options: Options) -> World:
    """All servers have published version 0."""
    slots = ((0,) * options.num_gradients,) * options.num_workers
    records = ((0,) * options.num_slots,) * options.num_workers
    nothing = (0,) * options.num_workers
    server = Server(Do.REST, Order(), (), 0, (0, TORN), slots, nothing, (), 0)
    sendings = (IDLE,) * options.num_workers
    servers = tuple(server._replace(sendings=sendings if n in options.far else ()) for n in range(options.num_servers))
    decisions = Decisions(0, (), frozenset(range(options.num_workers)), nothing, False, (0, 0, 0), (), nothing)
    unknown = (TORN,) * options.num_servers
    gpu = Gpu((unknown,) * (2 if options.ahead else 1)) if options.streams else None
    workers = (Worker(gpu=gpu),) * options.num_workers
    if options.hosts > 1:
        nowhere = ((),) * options.num_servers
        host = HostPart(True, frozenset(), (), nowhere, frozenset(), (), nowhere)
        servers = tuple(server._replace(host=host) for server in servers)
    world = World(workers, servers, decisions, records, NOBODY, -1, 0, 0, False, 0)
    if not options.survives:
        return world
    everybody = frozenset(range(options.num_workers))
    tickets = (((),) * options.num_slots,) * options.num_workers
    return world._replace(tickets=tickets, survival=Survivors(last=(-1,) * options.num_workers, live=everybody))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ViolationError(message)


def move(world: World, index: int, at: At) -> World:
    return set_worker(world, index, world.workers[index]._replace(at=at, server=0, target=-1, newest=-1, read=()))


def set_worker(world: World, index: int, worker: Worker) -> World:
    return world._replace(workers=(*world.workers[:index], worker, *world.workers[index + 1 :]))


def set_server(world: World, number: int, server: Server) -> World:
    return world._replace(servers=(*world.servers[:number], server, *world.servers[number + 1 :]))


def with_buffer(buffers: tuple[int, int], version: int, content: int) -> tuple[int, int]:
    return (content, buffers[1]) if version % 2 == 0 else (buffers[0], content)


def fill(options: Options, world: World, index: int, number: int, content: int) -> World:
    """Write where a server reads the worker's next gradient."""
    server, slot = world.servers[number], abs(content) % options.num_gradients
    before = abs(server.slots[index][slot])
    if options.in_place and before == -content:
        return world  # begun already: ahead, or for a batch that there was not
    require(before <= server.consumed[index], "a slot was written before it was consumed")
    return set_server(world, number, server._replace(slots=with_slot(server.slots, index, slot, content)))


def put(options: Options, world: World, index: int, number: int, content: int, sequence: int = 0) -> World:
    """What the slot of a push holds when it has been written: its gradient, unless something else was copied."""
    server, slot = world.servers[number], (sequence or content) % options.num_gradients
    return set_server(world, number, server._replace(slots=with_slot(server.slots, index, slot, content)))


def with_slot(memory: tuple[tuple[int, ...], ...], worker: int, slot: int, content: int) -> tuple[tuple[int, ...], ...]:
    row = (*memory[worker][:slot], content, *memory[worker][slot + 1 :])
    return (*memory[:worker], row, *memory[worker + 1 :])
