"""How often a server looks for what is new."""

import time

from hpcasync.comm.waiting import LONG_SECONDS, Backoff
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.transport.link import Link

# Between hosts a push is some ten operations that a server's MPI has to answer, each when it looks, and data that moves
# while it looks. Two workers on a line of 1 gbit/s that wait for their update, 5.75 MB a push: with sleeps of up to a
# millisecond, later a hundredth of the wait, an update took 260 ms, with these 160 (50 are the line's, each way), for
# some 6 % more of a core. A wait of ten seconds ends in sleeps of 5 ms all the same.
_QUICK_SECONDS = 1e-4
_PART_OF_WAIT = 5e-4


class Polling:
    """A server's waits: seldom looks while nothing moves, frequent ones while data comes or goes between hosts.

    Between hosts over TCP, data moves only while the server looks, and nobody says so but the worker: it writes a word
    before its push (`ControlWords.begun`), which is late by one sleep.

    Attributes:
        idle_seconds: spent in `wait` so far, and in waits for other servers: this one had nothing to do.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        between_hosts = Backoff(LONG_SECONDS, quick_seconds=_QUICK_SECONDS, part_of_wait=_PART_OF_WAIT)
        self._waiting = between_hosts if link.spans_nodes else link.control.make_wait(LONG_SECONDS)
        self._arrived = [0] * link.num_workers
        self._all_begun = ControlWords.all_begun(link.num_workers)
        self._is_moving = False
        self.idle_seconds = 0.0

    def arrived(self, worker: int, sequence: int) -> None:
        self._arrived[worker] = sequence

    def reset(self) -> None:
        self._waiting.reset()

    def wait(self) -> None:
        is_moving = self._link.spans_nodes and self._is_data_moving()
        if is_moving and not self._is_moving:
            self._waiting.reset()
        self._is_moving = is_moving
        began = time.perf_counter()
        self._waiting.wait(_QUICK_SECONDS if is_moving else LONG_SECONDS)
        self.idle_seconds += time.perf_counter() - began

    def _is_data_moving(self) -> bool:
        begun = self._link.control.local()[self._all_begun].tolist()
        is_receiving = any(last > here for last, here in zip(begun, self._arrived, strict=True))
        return is_receiving or self._link.is_sending
