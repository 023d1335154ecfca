"""The steps of a pull from a server on another node: ps.publication.

The copy that a server sends from is one step here. It may be made at any time after the request has been taken, also in
the middle of an update; what matters is that it is made before its source is written over.
"""

from collections.abc import Iterator

from protocol_model.options import Options
from protocol_model.world import IDLE, Send, Sending, Server, World, set_server


def request(options: Options, world: World, index: int, version: int) -> World:
    """A worker asks all servers on other nodes for a version."""
    for number in sorted(options.far):
        server = world.servers[number]
        world = set_server(world, number, _with_sending(server, index, Sending(Send.ASKED, version)))
    return world


def sending_steps(options: Options, world: World, number: int) -> Iterator[tuple[str, World]]:
    """A server takes requests, and copies what it has promised."""
    server = world.servers[number]
    for index, sending in enumerate(server.sendings):
        if sending.state is Send.ASKED:
            answered = _with_sending(server, index, _answer(options, server, sending.version))
            yield f"server {number} answers worker {index}", set_server(world, number, answered)
        elif sending.state is Send.PROMISED:
            copied = _with_sending(server, index, _copied(server, sending))
            yield f"server {number} copies for worker {index}", set_server(world, number, copied)


def before_writing(options: Options, server: Server, version: int) -> Server:
    """A server is about to write over the version before the last: what it has promised of that is copied now."""
    if "no copy before writing" in options.bugs:
        return server
    for index, sending in enumerate(server.sendings):
        if sending.state is Send.PROMISED and sending.version == version - 2:
            server = _with_sending(server, index, _copied(server, sending))
    return server


def take(world: World, number: int, index: int) -> tuple[Sending, World]:
    """What a worker has been sent, and the world after it has received it."""
    server = world.servers[number]
    return server.sendings[index], set_server(world, number, _with_sending(server, index, IDLE))


def _answer(options: Options, server: Server, version: int) -> Sending:
    for other in server.sendings:
        if other.state is Send.SENT and other.version == version:
            return other  # workers that pull the same version share a copy
    is_there = version > server.writing - 2 or "no refusal" in options.bugs
    return Sending(Send.PROMISED if is_there else Send.REFUSED, version)


def _copied(server: Server, sending: Sending) -> Sending:
    return Sending(Send.SENT, sending.version, server.buffers[sending.version % 2])


def _with_sending(server: Server, index: int, sending: Sending) -> Server:
    return server._replace(sendings=(*server.sendings[:index], sending, *server.sendings[index + 1 :]))
