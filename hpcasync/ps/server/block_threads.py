"""The threads that share the blocks of a server's sum and optimizer step.

Threads of our own and not torch's: those meet after every operation on a block, and while they wait for the next one
they spin on a core that a worker may need.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


class BlockThreads:
    """Runs work on blocks, on the caller's thread and others beside it.

    A block is computed by one thread, so the results do not depend on how many there are. Torch's own threads should be
    one then (`torch.set_num_threads`).
    """

    def __init__(self, num_threads: int = 1) -> None:
        assert num_threads >= 1
        self.num_threads = num_threads
        self._executor: ThreadPoolExecutor | None = None

    def run(
        self, num_blocks: int, work: Callable[[int], None], between_blocks: Callable[[], None] | None = None
    ) -> None:
        """Do `work` for every block, on whichever thread is free.

        The caller's thread calls `between_blocks` after each block of its own.
        """
        blocks = iter(range(num_blocks))  # a step of it is atomic

        def take() -> None:
            for block in blocks:
                work(block)

        helpers = [self._pool().submit(take) for _ in range(min(self.num_threads, num_blocks) - 1)]
        for block in blocks:
            work(block)
            if between_blocks is not None:
                between_blocks()
        for helper in helpers:
            helper.result()  # raises what it raised

    def _pool(self) -> ThreadPoolExecutor:
        # Started by the first update: then the rank has been given its cores, and threads inherit them.
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self.num_threads - 1, "blocks")
        return self._executor


class ThreadBlock:
    """A block of float32 for each thread that asks for one; longer than `size` where more is asked for."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._device = device
        self._local = threading.local()

    def first(self, num_elements: int) -> torch.Tensor:
        """That many elements of this thread's block, as its last user left them."""
        block: torch.Tensor | None = getattr(self._local, "block", None)
        if block is None or block.numel() < num_elements:
            block = self._local.block = torch.empty(
                max(num_elements, self._size), dtype=torch.float32, device=self._device
            )
        return block[:num_elements]
