"""Where everything lies in the data windows of a job: arithmetic only.

A server's window has two parameter buffers of its shard, then, at the coordinator, the records of pushes. (Mapped
memory may be a GPU's: records then lie in a window of their own.) Gradients lie where they cost the fewest copies.
Where all ranks share one host's memory and gradients travel as they are, each worker's window has vectors in which
they are computed, and every server reads its shard there. Else a server's window has slots for its shard of every
worker's gradients.
"""

from dataclasses import dataclass

from hpcasync.comm.roles import Roles
from hpcasync.comm.shards import Shard


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes, the same on all ranks.

    Attributes:
        roles: of all ranks.
        shards: of the servers.
        num_slots: pushes of a worker that not all servers have read yet, at most.
        num_spare: gradients of a worker that are being computed or pushed, where they lie with it.
        record_bytes: size of the record of a push.
        parameter_bytes: size of a published parameter.
        slot_bytes: size of a server's slot, for each server.
        is_in_place: gradients lie with the workers, float32.
        are_records_apart: records lie in a window of their own.
    """

    roles: Roles
    shards: list[Shard]
    num_slots: int
    num_spare: int
    record_bytes: int
    parameter_bytes: int
    slot_bytes: list[int]
    is_in_place: bool
    are_records_apart: bool = False

    @property
    def num_vectors(self) -> int:
        """Gradients of a worker in its window."""
        return self.num_slots + self.num_spare

    def window_bytes(self, rank: int) -> int:
        """Size of a rank's window."""
        if self.roles.is_server(rank):
            return self._slot_offset(self.roles.server_ranks.index(rank), self._num_records)
        return self.vector_offset(self.num_vectors - 1) + self._vector_bytes if self.is_in_place else 0

    def records_bytes(self, rank: int) -> int:
        """Size of a rank's window of records, if there is one."""
        is_coordinator = rank == self.roles.coordinator_rank
        return self._num_records * _aligned(self.record_bytes) if self.are_records_apart and is_coordinator else 0

    def buffer_offset(self, server: int, version: int) -> int:
        """Where a version of the shard lies in a server's window."""
        return version % 2 * self._buffer_bytes(server)

    def record_offset(self, worker: int, sequence: int) -> int:
        """Where the record of a push lies in the coordinator's window."""
        before = 0 if self.are_records_apart else 2 * self._buffer_bytes(0)
        return before + self._slot(worker, sequence) * _aligned(self.record_bytes)

    def vector_offset(self, sequence: int) -> int:
        """Where the gradient of a push lies in its worker's window, if it is in place."""
        return sequence % self.num_vectors * self._vector_bytes

    def gradient_offset(self, server: int, worker: int, sequence: int) -> tuple[int, int]:
        """The rank in whose window a server reads the gradient of a push, and where it lies there."""
        if self.is_in_place:
            return self.roles.worker_ranks[worker], self.vector_offset(sequence) + 4 * self.shards[server].start
        return self.roles.server_ranks[server], self._slot_offset(server, self._slot(worker, sequence))

    @property
    def _num_records(self) -> int:
        return len(self.roles.worker_ranks) * self.num_slots

    def _slot(self, worker: int, sequence: int) -> int:
        return worker * self.num_slots + sequence % self.num_slots

    def _slot_offset(self, server: int, slot: int) -> int:
        num_records = self._num_records if server == 0 and not self.are_records_apart else 0
        records_end = 2 * self._buffer_bytes(server) + num_records * _aligned(self.record_bytes)
        return records_end + (0 if self.is_in_place else slot * _aligned(self.slot_bytes[server]))

    def _buffer_bytes(self, server: int) -> int:
        return _aligned(self.shards[server].size * self.parameter_bytes)

    @property
    def _vector_bytes(self) -> int:
        return _aligned(4 * self.shards[-1].stop)


def _aligned(num_bytes: int) -> int:
    # Everything starts on a cache line: the last shard may end anywhere.
    return -(-num_bytes // 64) * 64
