"""Sums of hosts: ps.server.host_sums and ps.transport.sum_messages.

A sum is a message that leaves at any time after it has been sent, with what its memory holds then.
"""

from collections.abc import Iterator
from functools import cache

from hpcasync.comm.roles import Roles
from hpcasync.comm.shards import cut_shards
from hpcasync.ps.protocol.host_group import HostGroup
from hpcasync.ps.transport.window_layout import Layout
from protocol_model.options import Options
from protocol_model.world import Do, HostPart, Pushes, Server, World, set_server


@cache
def layout(options: Options) -> Layout:
    """Who is where, and who sums for whom."""
    num_servers, num_ranks = options.num_servers, options.num_servers + options.num_workers
    nodes = (
        *(server % options.hosts for server in range(num_servers)),
        *(worker % options.hosts for worker in range(options.num_workers)),
    )
    ranks = range(num_ranks)
    roles = Roles(tuple(map(str, nodes)), tuple(ranks[:num_servers]), tuple(ranks[num_servers:]))
    return Layout(
        roles,
        nodes,
        cut_shards(16 * num_servers, num_servers),
        num_slots=options.num_slots,
        num_spare=options.spare,
        record_bytes=64,
        parameter_bytes=4,
        slot_bytes=[64] * num_servers,
        is_in_place=True,
        sums_hosts=True,
    )


@cache
def sources(options: Options, number: int) -> tuple[int | None, ...]:
    """For each worker, the server that sums its gradients for this one."""
    where = layout(options)
    return tuple(where.summing_server(number, where.node_of(worker)) for worker in range(options.num_workers))


@cache
def summed_by(options: Options, number: int) -> tuple[int, ...]:
    """The servers of other hosts that this one sums for."""
    return tuple(layout(options).summed_by(number))


def group(options: Options, number: int, part: HostPart) -> HostGroup:
    """A server's machine with this content."""
    machine = HostGroup(sources(options, number))
    machine.is_empty, machine.awaited = part.is_empty, set(part.awaited)
    return machine


def with_group(part: HostPart, machine: HostGroup) -> HostPart:
    """With the content of the machine."""
    return part._replace(is_empty=machine.is_empty, awaited=frozenset(machine.awaited))


def take(options: Options, number: int, server: Server) -> Server:
    """A push joins the group."""
    assert server.host is not None
    machine = group(options, number, server.host)
    push = server.order.worker, server.order.sequence
    unread = (*server.host.unread, push) if machine.take(server.order.worker) else server.host.unread
    return server._replace(host=with_group(server.host, machine)._replace(unread=unread))


def clear(options: Options, number: int, server: Server) -> Server:
    """The group is forgotten."""
    assert server.host is not None
    machine = group(options, number, server.host)
    machine.clear()
    part = with_group(server.host, machine)
    return server._replace(host=part._replace(unread=(), sums=((),) * options.num_servers))


def send(options: Options, number: int, server: Server) -> Server:
    """Sums are on their way; others are waited for."""
    assert server.host is not None
    machine = group(options, number, server.host)
    is_sent, senders = machine.exchange()
    leaving = frozenset(summed_by(options, number) if is_sent else ())
    part = with_group(server.host, machine)._replace(leaving=leaving, senders=senders)
    return server._replace(do=Do.RECEIVE, host=part)


def leaving_steps(world: World, number: int) -> Iterator[tuple[str, World]]:
    """A sum leaves."""
    server = world.servers[number]
    part = server.host
    if part is None:
        return
    for target in sorted(part.leaving):
        left = set_server(world, number, server._replace(host=part._replace(leaving=part.leaving - {target})))
        yield f"a sum of server {number} leaves for {target}", _arrived(left, target, number, part.sums[target])


def receive(options: Options, server: Server) -> Server | None:
    """What has been waited for joins the sum; None: it is not all there, or something has not left."""
    part = server.host
    assert part is not None
    if part.leaving and "no wait for what is sent" not in options.bugs:
        return None
    if not all(part.arrived[source] for source in part.senders):
        return None
    total, arrived = server.sum, list(part.arrived)
    for source in part.senders:
        total, arrived[source] = (*total, *arrived[source][0]), arrived[source][1:]
    sums = part.sums if "sums are not cleared" in options.bugs else ((),) * options.num_servers
    return server._replace(sum=total, host=part._replace(arrived=tuple(arrived), senders=(), sums=sums))


def _arrived(world: World, target: int, source: int, pushes: Pushes) -> World:
    server = world.servers[target]
    assert server.host is not None
    arrived = list(server.host.arrived)
    arrived[source] = (*arrived[source], pushes)
    return set_server(world, target, server._replace(host=server.host._replace(arrived=tuple(arrived))))
