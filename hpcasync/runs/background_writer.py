"""Files written beside the training."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")


class BackgroundWriter(Generic[Result]):
    """Runs writes in a thread, one after the other; each returns what became of it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._running: list[Future[Result]] = []

    def submit(self, write: Callable[[], Result]) -> None:
        """Start a write as soon as those before it are done."""
        self._running.append(self._executor.submit(write))

    def poll(self) -> list[Result]:
        """Results of the writes that have ended since the last call; raises what one of them raised."""
        done = [future for future in self._running if future.done()]
        self._running = [future for future in self._running if future not in done]
        return [future.result() for future in done]

    def wait(self) -> list[Result]:
        """Like `poll`, after waiting for all that were started."""
        for future in self._running:
            future.exception()
        return self.poll()
