"""Where everything lies in the data windows of a job: arithmetic only.

A server's window has two parameter buffers of its shard, then, at the coordinator, the records of pushes. Gradients
lie where they cost the fewest copies. Where a worker shares a server's host, and gradients travel as they are, the
worker's window has vectors in which they are computed, and the server reads its shard there. Else the server's window
has slots for its shard of the worker's gradients; if a host's gradients are summed before they leave it, these vectors
are all that there is.

Mapped memory may be a GPU's, and is out of reach for other hosts: records, and slots of workers on other hosts, then
lie in a window of MPI beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hpcasync.comm.roles import Roles
from hpcasync.comm.shards import Shard
from hpcasync.errors import UserError
from hpcasync.ps.protocol.host_group import summing_server


@dataclass(frozen=True)
class Place:
    """`offset` bytes into the memory of `rank`; `is_beside`: in the window of MPI beside mapped memory."""

    rank: int
    offset: int
    is_beside: bool = False


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes, the same on all ranks.

    Attributes:
        nodes: of all ranks: those of the same one reach each other's memory.
        num_slots: pushes of a worker that not all servers have read yet, at most.
        num_spare: gradients of a worker that are being computed or pushed, where they lie with it.
        parameter_bytes: size of a published parameter.
        slot_bytes: size of a server's slot, for each server.
        is_in_place: gradients lie with the workers for servers of their node, float32.
        is_mapped: there are two windows, of mapped memory and of MPI.
        sums_hosts: gradients are summed within a node for servers of others; every worker's node has a server.
    """

    roles: Roles
    nodes: tuple[int, ...]
    shards: list[Shard]
    num_slots: int
    num_spare: int
    record_bytes: int
    parameter_bytes: int
    slot_bytes: list[int]
    is_in_place: bool
    is_mapped: bool = False
    sums_hosts: bool = False

    def num_vectors(self, worker: int) -> int:
        """Gradients of a worker in its window: none if it shares its node with no server."""
        is_read = any(self.lies_with_worker(server, worker) for server in range(len(self.shards)))
        return self.num_slots + self.num_spare if is_read else 0

    def lies_with_worker(self, server: int, worker: int) -> bool:
        """Whether a worker's gradients are read in the worker's window, by a server or for it."""
        return self.is_in_place and (self.sums_hosts or self._is_near(server, worker))

    def summing_server(self, server: int, node: int) -> int | None:
        """The server of another node that sums the gradients of its node for a server; None: it is its own."""
        return summing_server(server, node, [self.nodes[rank] for rank in self.roles.server_ranks])

    def summed_by(self, server: int) -> list[int]:
        """The servers of other nodes that a server sums for."""
        if not self.sums_hosts:
            return []
        node = self.nodes[self.roles.server_ranks[server]]
        return [other for other in range(len(self.shards)) if self.summing_server(other, node) == server]

    def sources(self, server: int) -> set[int]:
        """The servers of other nodes that sum for a server."""
        found = {self.summing_server(server, self.node_of(worker)) for worker in self._workers if self.sums_hosts}
        return {source for source in found if source is not None}

    def node_of(self, worker: int) -> int:
        return self.nodes[self.roles.worker_ranks[worker]]

    def num_far_workers(self, server: int) -> int:
        return sum(not self._is_near(server, worker) for worker in self._workers)

    def window_bytes(self, rank: int) -> int:
        """Size of a rank's data window; of the mapped one, if there are two."""
        if self.roles.is_server(rank):
            server = self.roles.server_ranks.index(rank)
            return self._slots_start(server, is_beside=False) + self._slots_bytes(server, is_beside=False)
        return self.num_vectors(self.roles.worker_ranks.index(rank)) * self._vector_bytes

    def beside_bytes(self, rank: int) -> int:
        """Size of a rank's window of MPI beside mapped memory."""
        if not self.is_mapped or not self.roles.is_server(rank):
            return 0
        server = self.roles.server_ranks.index(rank)
        return self._slots_start(server, is_beside=True) + self._slots_bytes(server, is_beside=True)

    def buffer_offset(self, server: int, version: int) -> int:
        """Where a version of the shard lies in a server's window."""
        return version % 2 * self._buffer_bytes(server)

    def record_offset(self, worker: int, sequence: int) -> int:
        """Where the record of a push lies at the coordinator; in the window of MPI, if there are two."""
        slot = worker * self.num_slots + sequence % self.num_slots
        return (0 if self.is_mapped else 2 * self._buffer_bytes(0)) + slot * _aligned(self.record_bytes)

    def vector_offset(self, sequence: int) -> int:
        """Where the gradient of a push lies in its worker's window, if any server reads it there."""
        return sequence % (self.num_slots + self.num_spare) * self._vector_bytes

    def gradient_place(self, server: int, worker: int, sequence: int) -> Place:
        """Where the gradient of a push is read by a server, or for it."""
        if self.lies_with_worker(server, worker):
            offset = self.vector_offset(sequence) + 4 * self.shards[server].start
            return Place(self.roles.worker_ranks[worker], offset)
        first = self._first_slots[server, worker]
        offset = first.offset + sequence % self.num_slots * _aligned(self.slot_bytes[server])
        return Place(first.rank, offset, first.is_beside)

    @cached_property
    def _first_slots(self) -> dict[tuple[int, int], Place]:
        """The first slot of each worker at each server where it has any."""
        places = {}
        for server, rank in enumerate(self.roles.server_ranks):
            for is_beside in (False, True):
                start = self._slots_start(server, is_beside=is_beside)
                for worker in self._workers_with_slots(server, is_beside=is_beside):
                    places[server, worker] = Place(rank, start, is_beside)
                    start += self.num_slots * _aligned(self.slot_bytes[server])
        return places

    @property
    def _workers(self) -> range:
        return range(len(self.roles.worker_ranks))

    def _is_near(self, server: int, worker: int) -> bool:
        return self.nodes[self.roles.server_ranks[server]] == self.node_of(worker)

    def _workers_with_slots(self, server: int, *, is_beside: bool) -> list[int]:
        """In one of a server's windows."""
        copied = [worker for worker in self._workers if not self.lies_with_worker(server, worker)]
        return [worker for worker in copied if is_beside == (self.is_mapped and not self._is_near(server, worker))]

    def _slots_start(self, server: int, *, is_beside: bool) -> int:
        has_records = server == 0 and is_beside == self.is_mapped
        num_records = len(self._workers) * self.num_slots if has_records else 0
        return (0 if is_beside else 2 * self._buffer_bytes(server)) + num_records * _aligned(self.record_bytes)

    def _slots_bytes(self, server: int, *, is_beside: bool) -> int:
        num_slots = len(self._workers_with_slots(server, is_beside=is_beside)) * self.num_slots
        return num_slots * _aligned(self.slot_bytes[server])

    def _buffer_bytes(self, server: int) -> int:
        return _aligned(self.shards[server].size * self.parameter_bytes)

    @property
    def _vector_bytes(self) -> int:
        return _aligned(4 * self.shards[-1].stop)


def require_servers(roles: Roles, nodes: Sequence[int]) -> None:
    """Whether a host's gradients can be summed there."""
    with_servers = {nodes[rank] for rank in roles.server_ranks}
    if alone := [rank for rank in roles.worker_ranks if nodes[rank] not in with_servers]:
        raise UserError(
            f"exchange.host_sums needs a server on every host, and {roles.hosts[alone[0]]} (rank {alone[0]}) has none: "
            "use roles.servers=per-device, or more servers (roles.servers)",
            everywhere=True,
        )


def _aligned(num_bytes: int) -> int:
    # Everything starts on a cache line: the last shard may end anywhere.
    return -(-num_bytes // 64) * 64
