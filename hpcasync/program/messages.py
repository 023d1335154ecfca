"""What workers tell the coordinator beside their gradients: scores that the program has found, and their buffers."""

from typing import Any

from mpi4py import MPI

_TAG = 1
_END = None


class Messages:
    """A rank's end of the messages to the coordinator (built collectively). Nobody waits for the other to be read.

    Args:
        comm: all ranks.
        coordinator: rank of the coordinator.
        num_workers: ranks that tell something.
    """

    def __init__(self, comm: MPI.Intracomm, coordinator: int, num_workers: int) -> None:
        self._comm = comm.Dup()
        self._coordinator = coordinator
        self._num_running = num_workers
        self._sent: list[MPI.Request] = []

    def tell(self, worker: int, what: dict[str, Any]) -> None:
        """Send something of JSON's types, or with arrays, to the coordinator."""
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self._comm.isend((worker, what), dest=self._coordinator, tag=_TAG))

    def end(self, worker: int) -> None:
        """A worker tells nothing more; returns when all is read."""
        self._sent.append(self._comm.isend((worker, _END), dest=self._coordinator, tag=_TAG))
        MPI.Request.Waitall(self._sent)

    def arrived(self) -> list[tuple[int, dict[str, Any]]]:
        """What has arrived at the coordinator, with the workers it is from."""
        found = []
        while self._comm.Iprobe(tag=_TAG):
            found += self._receive()
        return found

    def rest(self) -> list[tuple[int, dict[str, Any]]]:
        """All that is still to come; waits until every worker has told its end."""
        found = []
        while self._num_running:
            found += self._receive()
        return found

    def free(self) -> None:
        """Release what MPI holds (collective)."""
        self._comm.Free()

    def _receive(self) -> list[tuple[int, dict[str, Any]]]:
        worker, what = self._comm.recv(tag=_TAG)
        if what is _END:
            self._num_running -= 1
            return []
        return [(worker, what)]
