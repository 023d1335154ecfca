"""The allocator keeps freed memory, measured by page faults."""

import subprocess
import sys

import pytest

REUSE = """
import resource
from hpcasync.nmt.memory import keep_freed_memory
{call}
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(b"x") * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_reused() -> None:
    counts = [
        int(subprocess.run([sys.executable, "-c", REUSE.format(call=call)], capture_output=True, check=True).stdout)
        for call in ("", "assert keep_freed_memory()")
    ]
    # 20 blocks of 64 MiB have 16,384 pages each (512 where the kernel gives huge pages).
    assert counts[0] > 5_000 and counts[1] < counts[0] / 20
