"""Memory of computations on the CPU: oneDNN's caches."""

import os

# oneDNN's own cache of kernels, and that of torch's layer above it (ideep), each 1024 kernels large.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_NUM_KERNELS = "32"


def limit_kernel_caches() -> None:
    """Have oneDNN keep the kernels of about a training step, unless the environment says otherwise.

    A kernel is for one shape, and nearly every batch has its own. With 3.7 million parameters those of 1024 shapes hold
    a gigabyte, and few of them are met again before they have had to go. Call it before the first computation.
    """
    for name in KERNEL_CACHES:
        os.environ.setdefault(name, _NUM_KERNELS)
