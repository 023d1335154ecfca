"""What a server does to memory: at once on a CPU, at any later moment, in the order of its stream, on a GPU."""

from collections.abc import Iterator

from protocol_model.hosts import sources, summed_by
from protocol_model.options import Options
from protocol_model.world import TORN, Do, Kernel, Pushes, Server, World, require, set_server, with_buffer


def launch(options: Options, world: World, number: int, kernel: Kernel) -> Server:
    """Ask for it; a CPU has it then."""
    server = world.servers[number]
    if not options.streams:
        return run(options, world, number, kernel)
    is_needed = kernel.pushes or kernel.summed or kernel.do is not Do.READ
    return server._replace(stream=(*server.stream, kernel)) if is_needed else server


def stream_steps(options: Options, world: World, number: int) -> Iterator[tuple[str, World]]:
    """A server's GPU comes to what is next in its stream."""
    server = world.servers[number]
    if server.stream:
        first, *others = server.stream
        done = run(options, world, number, first)._replace(stream=tuple(others))
        yield f"server {number}'s GPU: {first.do.name.lower().replace('_', ' ')}", set_server(world, number, done)


def read(options: Options, world: World, number: int, *, is_own: bool, is_for_others: bool) -> Server:
    """Read the slots of the group for this shard, or for those that this server sums for."""
    server = world.servers[number]
    pushes = server.held if is_own else ()
    if server.host is None:
        return launch(options, world, number, Kernel(Do.READ, pushes))
    pushes = tuple(push for push in pushes if sources(options, number)[push[0]] is None)
    unread = server.host.unread if is_for_others else ()
    asked = launch(options, world, number, Kernel(Do.READ, pushes, summed=unread))
    assert asked.host is not None
    left = () if is_for_others else asked.host.unread
    return asked._replace(host=asked.host._replace(unread=left))


def run(options: Options, world: World, number: int, kernel: Kernel) -> Server:
    """Do it."""
    server, version = world.servers[number], kernel.version
    if kernel.do is Do.READ:
        return _read(options, world, number, kernel)
    if kernel.do is Do.BEGIN_BUFFER:
        _require_group(options, server.sum, kernel.pushes)
        return server._replace(sum=(), buffers=with_buffer(server.buffers, version, TORN))
    return server._replace(buffers=with_buffer(server.buffers, version, version))


def _read(options: Options, world: World, number: int, kernel: Kernel) -> Server:
    """Read the slots of pushes: each must still hold its push."""
    server = world.servers[number]
    _require_content(options, server, kernel.pushes)
    if server.host is not None:
        sums = list(server.host.sums)
        for other in summed_by(options, number):
            _require_content(options, world.servers[other], kernel.summed)
            sums[other] = (*sums[other], *kernel.summed)
        server = server._replace(host=server.host._replace(sums=tuple(sums)))
    return server._replace(sum=(*server.sum, *kernel.pushes))


def _require_content(options: Options, server: Server, pushes: Pushes) -> None:
    for worker, sequence in pushes:
        content = server.slots[worker][sequence % options.num_gradients]
        require(content == sequence, f"push {sequence} of worker {worker} reads {content}")


def _require_group(options: Options, found: Pushes, group: Pushes) -> None:
    # Hosts' sums are added in their own order.
    is_whole = found == group if options.hosts == 1 else sorted(found) == sorted(group)
    require(is_whole, f"a shard applies {found}, not {group}")
