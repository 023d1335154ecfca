"""What workers tell the coordinator beside their gradients: scores that the program has found, and their buffers."""

from typing import Any

from mpi4py import MPI

from hpcasync.comm.waiting import Backoff, is_death
from hpcasync.program.buffer_means import BufferMeans
from hpcasync.train.ranks import Ranks
from hpcasync.train.supervise.supervisor import Supervisor

_TAG = 1
_END = None

Told = list[tuple[int, dict[str, Any]]]


class Messages:
    """A rank's end of the messages to the coordinator (built collectively). Nobody waits for the other to be read.

    Nor for the dead: each worker is listened to alone, and what one has sent in part is let go with it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._comm = ranks.comm.Dup()
        self._ranks = ranks
        self._coordinator = ranks.roles.coordinator_rank
        # The workers that may tell something still; in sync the coordinator is one, and listens to itself.
        workers = enumerate(ranks.roles.worker_ranks)
        self._speakers = {worker: rank for worker, rank in workers if rank != self._coordinator}
        self._own: Told = []
        self._receiving: dict[int, MPI.Request] = {}
        self._sent: list[MPI.Request] = []

    def tell(self, what: dict[str, Any]) -> None:
        """Send something of JSON's types, or with arrays, to the coordinator; from a worker."""
        if self._ranks.is_coordinator:
            self._own.append((self._ranks.worker, what))
            return
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self._comm.isend(what, dest=self._coordinator, tag=_TAG))

    def end(self) -> None:
        """This worker tells nothing more; returns when all is read."""
        if not self._ranks.is_coordinator:
            self._sent.append(self._comm.isend(_END, dest=self._coordinator, tag=_TAG))
            MPI.Request.Waitall(self._sent)

    def arrived(self) -> Told:
        """What has arrived at the coordinator, with the workers it is from."""
        own, self._own = self._own, []
        return own + [(worker, what) for worker in list(self._speakers) for what in self._of(worker)]

    def rest(self) -> Told:
        """All that is still to come; waits until every worker that lives has told its end."""
        found, backoff = self.arrived(), Backoff()
        while self._speakers:
            backoff.wait()
            found += self.arrived()
            for worker in self._ranks.deaths.dead_workers():
                self._speakers.pop(worker, None)
        return found

    def free(self) -> None:
        """Release what MPI holds (collective, but where ranks may have died)."""
        if not self._ranks.deaths.may_lose_workers:
            self._comm.Free()

    def _of(self, worker: int) -> list[dict[str, Any]]:
        found = []
        try:
            while worker in self._speakers and self._has_next(worker):
                is_here, what = self._receiving[worker].test()
                if not is_here:
                    break
                del self._receiving[worker]
                if what is _END:
                    del self._speakers[worker]
                else:
                    found.append(what)
        except MPI.Exception as error:
            if not is_death(error):
                raise
            del self._speakers[worker]
        return found

    def _has_next(self, worker: int) -> bool:
        """Whether a message of a worker is on its way."""
        if worker not in self._receiving and (message := self._comm.improbe(self._speakers[worker], _TAG)):
            self._receiving[worker] = message.irecv()
        return worker in self._receiving


def heed(told: Told, supervisor: Supervisor, buffers: BufferMeans | None = None) -> None:
    """Do what workers have told for; `buffers` keeps theirs."""
    for worker, what in told:
        if "stop" in what:
            supervisor.end_on_request()
        elif "scores" in what:
            supervisor.report_scores(what["version"], what["scores"])
        elif buffers is not None:
            buffers.take(worker, what["weight"], what["buffers"])
