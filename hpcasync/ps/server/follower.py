"""A server other than the coordinator: it executes orders."""

from collections.abc import Iterable

from hpcasync.ps.protocol.orders import Kind, Order
from hpcasync.ps.protocol.saved_shard import SavedShard
from hpcasync.ps.server.shard_server import SAVED_TAG, ShardServer
from hpcasync.ps.transport.order_channel import OrderReceiver


class Follower(ShardServer):
    """A server other than the coordinator."""

    def run(self) -> None:
        orders = OrderReceiver(self._link.server_comm)
        while True:
            self._report_saves(self._saver.poll())
            received = orders.poll()
            if received is None:
                self._link.serve_pulls()  # looking for orders has let MPI progress
                if not self._read_while_idle():
                    self._polling.wait()
                continue
            self._polling.reset()
            order, request = received
            if order.kind is Kind.FINISH:
                break
            self._execute(order, request)
        self._report_saves(self._saver.wait())

    def _after_apply(self, order: Order) -> None:
        self._link.control.tell_applied(self._index, order.version)

    def _report_saves(self, results: Iterable[SavedShard]) -> None:
        for saved in results:
            self._link.server_comm.send(saved, dest=0, tag=SAVED_TAG)
