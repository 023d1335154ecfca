"""The allocator keeps freed memory, measured by page faults; oneDNN keeps few kernels, measured by what is in use."""

import ctypes
import os
import subprocess
import sys

import pytest

from hpcasync.nmt.memory import KERNEL_CACHES
from hpcasync.onednn import has_onednn

REUSE = """
import resource
from hpcasync.comm.allocator import keep_freed_memory, return_freed_memory
{call}
def faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(b"x") * ({mib} << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_reused_or_returned() -> None:
    def faults(call: str, mib: int) -> int:
        program = REUSE.format(call=call, mib=mib)
        return int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)

    # 20 blocks of 64 MiB have 16,384 pages each (512 where the kernel gives huge pages).
    default = faults("", 64)
    assert default > 5_000 and faults("assert keep_freed_memory()", 64) < default / 20
    # Once a smaller one has been freed, glibc keeps the next.
    returned = faults("assert return_freed_memory()", 16)
    assert returned > 1_000 and faults("", 16) < returned / 20
    assert faults("assert return_freed_memory()", 15) < returned / 20


KERNELS = """
import ctypes
import torch
from hpcasync.onednn import has_onednn, onednn_linear
from hpcasync.nmt.memory import limit_kernel_caches
{call}
class Usage(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks used".split()]
    _fields_ += [("free", ctypes.c_size_t), ("top", ctypes.c_size_t)]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Usage
def used():
    usage = library.mallinfo2()
    return usage.used + usage.hblkhd
def multiply(first, last):
    for rows in range(first, last):
        onednn_linear(torch.ones(rows, 64), weight, None)
torch.set_num_threads(1)
weight = torch.ones(64, 64)
multiply(100, 140)
before = used()
multiply(140, 440)
print(used() - before)
"""


@pytest.mark.skipif(not has_onednn() or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs oneDNN and glibc")
def test_kernels_of_other_shapes_are_not_kept() -> None:
    # A test before this one may have set them for this process.
    environment = {name: value for name, value in os.environ.items() if name not in KERNEL_CACHES}
    grown = [
        int(subprocess.check_output([sys.executable, "-c", KERNELS.format(call=call)], env=environment))
        for call in ("", "limit_kernel_caches()")
    ]
    assert grown[0] > 1_000_000 and grown[1] < grown[0] / 10, grown
