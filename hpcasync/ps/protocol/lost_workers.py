"""The deaths of workers, as far as the coordinator has dealt with them."""

from collections.abc import Callable, Collection

from hpcasync.ps.protocol.lost_work import LostWork


class LostWorkers:
    """What the coordinator of a job needs to go on without workers that die.

    Args:
        work: what the dead have left undone.
        dead_workers: worker_index of those that have died; asked often.
    """

    def __init__(self, work: LostWork, dead_workers: Callable[[], Collection[int]]) -> None:
        self.work = work
        self._dead_workers = dead_workers
        self._lost: set[int] = set()
        self._num_rests: dict[int, int] = {}
        self._has_told = False

    def is_lost(self, worker: int) -> bool:
        """Whether the worker has been let go."""
        return worker in self._lost

    @property
    def is_stuck(self) -> bool:
        """Whether all workers have died before they were told that nothing is left to do."""
        return not self.work.num_live and not self._has_told

    def new_deaths(self) -> list[int]:
        """Workers that have died and have not been let go."""
        return sorted(set(self._dead_workers()) - self._lost)

    def let_go(self, worker: int, num_drawn: int) -> None:
        """A worker has died, and all pushes that it had announced have been received."""
        self._lost.add(worker)
        self.work.died(worker, num_drawn)

    def rests(self, worker: int, num_rests: int) -> bool:
        """Whether a worker that has found no more batches so many times rests since the last call."""
        if num_rests == self._num_rests.get(worker, 0):
            return False
        self._num_rests[worker] = num_rests
        return self.work.rests(worker)

    def becomes_exhausted(self) -> bool:
        """Whether nothing is left to do for anybody; True once, for all to be told."""
        is_news = self.work.is_exhausted and not self._has_told
        self._has_told = self._has_told or is_news
        return is_news
