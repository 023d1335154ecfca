"""Walks through every reachable state of the model, breadth first over hashed states."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from protocol_model import machines
from protocol_model.gpus import gpu_steps
from protocol_model.hosts import leaving_steps
from protocol_model.kernels import stream_steps
from protocol_model.messages import sending_steps
from protocol_model.options import Options
from protocol_model.servers import coordinator_steps, execute, follower_steps
from protocol_model.workers import landings, worker_steps
from protocol_model.world import At, Do, Survivors, ViolationError, World, initial, require, set_worker


@dataclass(frozen=True)
class Report:
    """How much was walked through."""

    num_states: int
    num_transitions: int
    num_final: int


def check(options: Options) -> Report:
    """Walk through every reachable state, breadth first, so that the story of a mistake is as short as can be.

    Raises:
        ViolationError: an invariant does not hold, somebody waits for ever, or steps go round in a circle; with the
            steps that lead there.
    """
    machines.forget()
    start = initial(options)
    order, came_from = {start: 0}, [("begins", 0)]
    edges: list[list[int]] = []
    num_final = 0
    queue = deque([start])
    while queue:
        world = queue.popleft()
        index = len(edges)
        targets: list[int] = []
        try:
            steps = list(successors(options, world))
            num_final += _check_end(options, world, [name for name, _ in steps])
            for name, after in steps:
                # States are large: each is hashed once.
                number = order.setdefault(after, len(order))
                if number == len(came_from):
                    came_from.append((name, index))
                    queue.append(after)
                targets.append(number)
        except AssertionError as error:
            raise ViolationError(f"{error}, after: {'; '.join(_story(came_from, index))}") from error
        edges.append(targets)
    require(_is_acyclic(edges), "steps go round in a circle")
    return Report(len(order), sum(map(len, edges)), num_final)


def _check_end(options: Options, world: World, steps: list[str]) -> bool:
    """Whether this state is an end; if nothing more happens, it has to be one."""
    if is_final(options, world):
        check_final(options, world)
        return True
    has_next = any(not name.endswith("dies") for name in steps)
    # A job with a dead worker is ended from outside; until then the others go on. Only one that waits until its push is
    # applied waits for others' pushes.
    may_wait = (At.DONE, At.WAIT) if options.pull == "applied" else (At.DONE,)
    may_rest = world.num_dead and all(worker.dead or worker.at in may_wait for worker in world.workers)
    require(has_next or (bool(may_rest) and not options.survives), "somebody waits for ever")
    return False


def _story(came_from: list[tuple[str, int]], index: int) -> list[str]:
    steps = []
    while index:
        name, index = came_from[index]
        steps.append(name)
    return steps[::-1]


def _is_acyclic(edges: list[list[int]]) -> bool:
    """Kahn's algorithm: take away what nothing leads to, until nothing is left."""
    num_incoming = [0] * len(edges)
    for targets in edges:
        for target in targets:
            num_incoming[target] += 1
    ready = [index for index, number in enumerate(num_incoming) if number == 0]
    num_taken = 0
    while ready:
        num_taken += 1
        for target in edges[ready.pop()]:
            num_incoming[target] -= 1
            if num_incoming[target] == 0:
                ready.append(target)
    return num_taken == len(edges)


def successors(options: Options, world: World) -> Iterator[tuple[str, World]]:
    """Every state that one atomic step leads to, with the step's name."""
    for index, worker in enumerate(world.workers):
        yield from gpu_steps(options, world, index)
        if not worker.dead and (options.survives or worker.at is not At.DONE):
            for name, after in worker_steps(options, world, index):
                yield f"worker {index} {name}", after
            if world.num_dead < options.deaths:
                died = set_worker(world, index, worker._replace(dead=True))
                yield f"worker {index} dies", died._replace(num_dead=world.num_dead + 1)
    for number, server in enumerate(world.servers):
        yield from landings(options, world, number)
        yield from stream_steps(options, world, number)
        yield from leaving_steps(world, number)
        if server.do is not Do.END:
            yield from sending_steps(options, world, number)
        if server.do is Do.REST:
            yield from follower_steps(options, world, number) if number else coordinator_steps(options, world)
        elif server.do is not Do.END:
            yield from execute(options, world, number)


def is_final(options: Options, world: World) -> bool:
    """Whether everybody has ended in good order."""
    has_ended = (worker.at is At.DONE or (options.survives and worker.dead) for worker in world.workers)
    return all(has_ended) and all(server.do is Do.END for server in world.servers)


def check_final(options: Options, world: World) -> None:
    """What must hold at the end of a run."""
    pushed, applied, dropped = world.decisions.counts
    announced = tuple(worker.announced for worker in world.workers)
    require(pushed == applied + dropped, f"{pushed} pushed, {applied} applied, {dropped} dropped")
    require(pushed == sum(announced), f"{sum(announced)} pushes were announced, {pushed} were received")
    require(all(server.consumed == announced for server in world.servers), "a slot was not consumed")
    require(not any(server.held for server in world.servers), "a gradient was never read")
    require(not any(server.queue for server in world.servers), "a server ended with orders to execute")
    require(not any(server.stream for server in world.servers), "a server ended with kernels to run")
    parts = [server.host for server in world.servers if server.host is not None]
    require(not any(part.leaving or any(part.arrived) for part in parts), "a sum was never added to another")
    require(world.published == world.decisions.version, "the newest version was not published")
    if world.survival is not None:
        _check_survival(options, world, world.survival)
    elif not world.stop:
        rejected = sum(sequence <= announced[worker] for worker, sequence in options.rejected)
        may_be_stale = options.limit is not None and options.policy == "drop"
        is_expected = dropped >= rejected if may_be_stale else dropped == rejected
        require(pushed == options.num_tickets and is_expected, f"{pushed} batches pushed, {dropped} dropped")


def _check_survival(options: Options, world: World, known: Survivors) -> None:
    """Every batch was done once, unless nobody is left to do it. That none arrives twice is asserted by `LostWork`."""
    is_complete = known.low == options.num_tickets and not known.above
    require(
        is_complete or world.stop or not known.has_told, f"batches are missing: {known.low} and {known.above} arrived"
    )
    is_deserted = all(worker.dead for worker in world.workers)
    require(known.has_told or world.stop or is_deserted, "workers have ended without being told that nothing is left")
    require(not known.lost or world.stop or is_deserted, f"nobody does {known.lost}")
    rejected = sum(sequence <= world.workers[worker].announced for worker, sequence in options.rejected)
    _, _, dropped = world.decisions.counts
    require(dropped == rejected or world.stop, f"{dropped} dropped")
