"""Which sums of hosts are in a group, where hosts sum (`exchange.host_sums`): pure decisions, one server's.

Of the gradients for a server of another host, one server of each host makes one sum. When the group is applied these
sums travel to the owners of the shards. The orders, which all servers execute alike, say who sends and who waits.
"""

from collections.abc import Sequence
from typing import NamedTuple


def summing_server(server: int, host: int, hosts: Sequence[int]) -> int | None:
    """The server of another host that sums the gradients of its host for a server; None: it is its own.

    Args:
        hosts: of the servers.
    """
    if host == hosts[server]:
        return None
    there = [other for other, its in enumerate(hosts) if its == host]
    elsewhere = [other for other, its in enumerate(hosts) if its != host]
    return there[elsewhere.index(server) % len(there)]


class Exchange(NamedTuple):
    """What a server sends and waits for.

    Attributes:
        is_sent: what it has summed for others goes to each of them.
        sources: servers of other hosts that have a sum for it, in order.
    """

    is_sent: bool
    sources: tuple[int, ...]


class HostGroup:
    """What one server knows of a group.

    Args:
        sources: for each worker, the server that sums its gradients for this one; None: it is of this host.
    """

    def __init__(self, sources: Sequence[int | None]) -> None:
        self._sources = sources
        self.clear()

    def take(self, worker: int) -> bool:
        """A push joins the group; returns whether it is read here."""
        source = self._sources[worker]
        if source is None:
            self.is_empty = False
            return True
        self.awaited.add(source)
        return False

    def exchange(self) -> Exchange:
        """The group is complete: what is sent and waited for; the next one begins."""
        exchange = Exchange(not self.is_empty, tuple(sorted(self.awaited)))
        self.clear()
        return exchange

    def clear(self) -> None:
        """Begin a new group."""
        self.is_empty = True  # no push of this host is in it
        self.awaited: set[int] = set()
