"""How often a server looks for what is new."""

from hpcasync.comm.waiting import LONG_SECONDS, SHORT_SECONDS
from hpcasync.ps.protocol.control_words import ControlWords
from hpcasync.ps.transport.link import Link


class Polling:
    """A server's waits: seldom looks while nothing moves, frequent ones while data comes or goes between hosts.

    Between hosts over TCP, data moves only while the server looks, and nobody says so but the worker: it writes a word
    before its push (`ControlWords.begun`), which is late by one sleep.

    Args:
        link: the windows.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting = link.make_wait(LONG_SECONDS)
        self._arrived = [0] * link.num_workers
        self._all_begun = ControlWords.all_begun(link.num_workers)
        self._is_moving = False

    def arrived(self, worker: int, sequence: int) -> None:
        """All of a push is here."""
        self._arrived[worker] = sequence

    def reset(self) -> None:
        """Something happened: be quick again."""
        self._waiting.reset()

    def wait(self) -> None:
        """Wait a moment."""
        is_moving = self._link.spans_nodes and self._is_data_moving()
        if is_moving and not self._is_moving:
            self._waiting.reset()
        self._is_moving = is_moving
        self._waiting.wait(SHORT_SECONDS if is_moving else LONG_SECONDS)

    def _is_data_moving(self) -> bool:
        begun = self._link.control.local()[self._all_begun].tolist()
        is_receiving = any(last > here for last, here in zip(begun, self._arrived, strict=True))
        return is_receiving or self._link.is_sending
