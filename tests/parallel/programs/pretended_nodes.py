"""Ranks of one machine that take themselves for several nodes."""

from mpi4py import MPI


class OnNodes(MPI.Intracomm):
    """A communicator whose ranks are dealt out to nodes in turn: between these everything goes by MPI.

    Attributes:
        num_nodes: as many as there are ranks, or more: each is alone.
    """

    num_nodes = 1

    def Split_type(self, *_: object) -> MPI.Intracomm:  # noqa: N802 - the name is mpi4py's
        comm = MPI.Intracomm(self).Split(self.rank % self.num_nodes, self.rank)
        assert isinstance(comm, MPI.Intracomm)
        return comm


def on_nodes(comm: MPI.Intracomm, num_nodes: int) -> MPI.Intracomm:
    """The same ranks, on so many nodes; on one: as they are."""
    if num_nodes == 1:
        return comm
    pretended = OnNodes(comm)
    pretended.num_nodes = num_nodes
    return pretended
