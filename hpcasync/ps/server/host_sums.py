"""A host's gradients are summed there before they leave it.

For every server of another host, one server of each host sums what the workers of its own host have pushed. When an
update is made these sums travel to the owners of the shards, one from each host with a push in the group, and are added
there to the sum of the owner's own host. Pushes are taken, dropped and given back one by one as always: the orders,
which all servers execute alike, say what is in a sum, and who waits for whom.
"""

import torch

from hpcasync.ps.protocol.host_group import HostGroup
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
        self._group = HostGroup([link.summing_server(worker) for worker in range(link.num_workers)])

    def take(self, worker: int, sequence: int) -> bool:
        """A push joins the group; returns whether it is read here, and must stay till `fold`, `clear` or `exchange`."""
        is_read = self._group.take(worker)
        if is_read:
            for server, total in self._sums.items():
                total.add_slot(self._link.slot(worker, sequence, server))
        return is_read

    def fold(self) -> None:
        for total in self._sums.values():
            total.fold()

    def clear(self) -> None:
        for total in self._sums.values():
            total.clear()
        self._group.clear()

    def exchange(self) -> list[torch.Tensor]:
        """Send this host's sums of the group and wait for those of the others, in the order of the servers."""
        is_sent, sources = self._group.exchange()
        ranks, size = self._link.roles.server_ranks, self._link.own_shard.size
        outgoing = {ranks[server]: total.whole() for server, total in self._sums.items()} if is_sent else {}
        senders = [ranks[server] for server in sources]
        received = self._messages.exchange(outgoing, senders, size, self._link.make_progress)
        self.clear()
        return received
