"""A host's gradients are summed there before they leave it.

For every server of another host, one server of each host sums what the workers of its own host have pushed. When an
update is made these sums travel to the owners of the shards, one from each host with a push in the group, and are added
there to the sum of the owner's own host. Pushes are taken, dropped and given back one by one as always: the orders,
which all servers execute alike, say what is in a sum, and who waits for whom.
"""

import torch

from hpcasync.ps.server.block_threads import BlockThreads
from hpcasync.ps.server.group_sum import GroupSum
from hpcasync.ps.transport.link import Link


class HostSums:
    """One server's part in it."""

    def __init__(self, link: Link, device: torch.device, threads: BlockThreads) -> None:
        self._link = link
        self._sums = {
            server: GroupSum(link.shards[server].size, link.wire, device, threads) for server in link.summed_here
        }
        self._messages = link.make_sum_messages(device)
        self._is_empty = True  # no push of this host is in the group
        self._sources: set[int] = set()  # servers of other hosts which have a sum for this one

    def take(self, worker: int, sequence: int) -> None:
        """A push joins the group; one of this host must stay as it is until `fold`, `clear` or `exchange`."""
        source = self._link.summing_server(worker)
        if source is not None:
            self._sources.add(source)
            return
        self._is_empty = False
        for server, total in self._sums.items():
            total.add_slot(self._link.slot(worker, sequence, server))

    def fold(self) -> None:
        for total in self._sums.values():
            total.fold()

    def clear(self) -> None:
        for total in self._sums.values():
            total.clear()
        self._is_empty = True
        self._sources.clear()

    def exchange(self) -> list[torch.Tensor]:
        """Send this host's sums of the group and wait for those of the others, in the order of the servers."""
        ranks, size = self._link.roles.server_ranks, self._link.own_shard.size
        outgoing = {} if self._is_empty else {ranks[server]: total.whole() for server, total in self._sums.items()}
        sources = [ranks[server] for server in sorted(self._sources)]
        received = self._messages.exchange(outgoing, sources, size, self._link.make_progress)
        self.clear()
        return received
