"""Hosts of a simulated cluster, whose gradients are summed there before they leave it (`exchange.host_sums`)."""

from hpcasync.config.schema import Config
from hpcasync.errors import UserError
from hpcasync.ps.protocol.host_group import HostGroup, summing_server
from hpcasync.simulate.cluster import ClusterConfig


class Hosts:
    """Workers that share a link are on one host; the servers are dealt out to the hosts in turn.

    Attributes:
        number: of hosts.
    """

    def __init__(self, cluster: ClusterConfig, num_servers: int) -> None:
        per_host = cluster.network.workers_per_link
        self.number = -(-cluster.workers // per_host)
        self._of_servers = [server % self.number for server in range(num_servers)]
        self._of_workers = [worker // per_host for worker in range(cluster.workers)]

    def sources(self, server: int) -> list[int | None]:
        """For each worker, the server that sums its gradients for this one; None: it is of the same host."""
        return [summing_server(server, host, self._of_servers) for host in self._of_workers]

    def groups(self) -> list[HostGroup]:
        """Of one server of each host: the others there send and wait as it does."""
        return [HostGroup(self.sources(server)) for server in range(self.number)]


def hosts_of(config: Config, cluster: ClusterConfig, num_servers: int) -> Hosts | None:
    """None: each push travels by itself.

    Raises:
        UserError: some host has no server.
    """
    if (least := fewest_servers_of_hosts(config, cluster)) == 1:
        return None
    if num_servers < least:
        raise UserError(
            f"exchange.host_sums needs a server on every host, and roles.servers={num_servers} for {least} hosts, each "
            "of the workers that share a link (cluster.network.workers_per_link)"
        )
    return Hosts(cluster, num_servers)


def fewest_servers_of_hosts(config: Config, cluster: ClusterConfig) -> int:
    """One on each host that sums what is pushed there; 1 where none does."""
    sums = config.exchange.host_sums and config.mode != "sync"
    return -(-cluster.workers // cluster.network.workers_per_link) if sums else 1
