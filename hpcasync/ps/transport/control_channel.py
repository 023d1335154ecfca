"""The control words of a job: what ranks tell each other by them, and how they wait to be told."""

from mpi4py import MPI

from hpcasync.comm import futex
from hpcasync.comm.roles import Roles
from hpcasync.comm.shared_words import SharedControlWindow
from hpcasync.comm.waiting import SHORT_SECONDS, Backoff
from hpcasync.comm.wake_ups import ANYTHING, WakeUps, WakeUpWait
from hpcasync.comm.windows import ControlWindow
from hpcasync.ps.protocol.control_words import ControlWords


class ControlChannel:
    """The words of all servers (`ps.protocol.control_words`), and wake-ups of ranks that sleep until one changes.

    Args:
        comm: all ranks (collective).
        spans_nodes: whether they are on several hosts.

    Attributes:
        read, add, store, local: as the window of the words has them (`comm.windows.ControlWindow`); nobody is woken.
    """

    def __init__(self, comm: MPI.Intracomm, roles: Roles, *, spans_nodes: bool) -> None:
        self._roles = roles
        self._num_workers = len(roles.worker_ranks)
        self._rank = comm.rank
        num_words = ControlWords.count(self._num_workers, len(roles.server_ranks)) if roles.is_server(comm.rank) else 0
        self._window = (ControlWindow if spans_nodes else SharedControlWindow)(comm, num_words)
        self.read, self.add, self.store = self._window.read, self._window.add, self._window.store
        self.local = self._window.local
        # Between hosts ranks poll: what is put there moves while its target looks.
        self._wake_ups = WakeUps(comm) if not spans_nodes and futex.is_available() else None

    def tell_worker(self, worker: int, word: int, value: int) -> None:
        """Store one of this server's words that a worker may be waiting for."""
        self.store(self._rank, word, value)
        self._wake(self._roles.worker_ranks[worker], word)

    def tell_everybody(self, word: int, value: int) -> None:
        """Store one of this server's words that all ranks look at while they wait."""
        self.store(self._rank, word, value)
        for rank in range(len(self._roles.hosts)):
            self._wake(rank)

    def tell_coordinator(self, word: int, value: int) -> None:
        """Store one of the coordinator's words."""
        self.store(self._roles.coordinator_rank, word, value)
        self._wake(self._roles.coordinator_rank)

    def tell_applied(self, server: int, version: int) -> None:
        """A server's shard has a version: tell the coordinator."""
        self.tell_coordinator(ControlWords.applied(self._num_workers, server), version)

    def have_applied(self, version: int) -> bool:
        """At the coordinator: whether all other servers' shards have a version."""
        first = ControlWords.applied(self._num_workers, 1)
        return min(self.local()[first:].tolist(), default=version) >= version

    def offer(self, worker: int, ticket: int) -> None:
        """At the coordinator: offer a worker a batch that a dead one has left undone."""
        self.store(self._rank, ControlWords.offered_ticket(worker), ticket)
        word = ControlWords.offers(worker)
        self.tell_worker(worker, word, int(self.local()[word]) + 1)

    def wake_followers(self) -> None:
        """The other servers have been sent something."""
        for rank in self._roles.server_ranks[1:]:
            self._wake(rank)

    def make_wait(self, longest_seconds: float = SHORT_SECONDS, word: int = ANYTHING) -> Backoff | WakeUpWait:
        """How this rank is to wait for others' stores; to be made before the first look.

        Args:
            longest_seconds: of a sleep, between hosts.
            word: that a worker waits for, if it is one only.
        """
        return Backoff(longest_seconds) if self._wake_ups is None else WakeUpWait(self._wake_ups, word)

    def free(self) -> None:
        """Free the windows (collective)."""
        if self._wake_ups is not None:
            self._wake_ups.free()
        self._window.free()

    def _wake(self, rank: int, topic: int = ANYTHING) -> None:
        if self._wake_ups is not None:
            self._wake_ups.wake(rank, topic)
