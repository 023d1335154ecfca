"""Windows that do not fit are refused with the host, the sizes and a remedy."""

from hpcasync.ps.transport.window_memory import GpuShare, describe_gpu_shortage, describe_shortage

GIB = 2**30


def test_what_fits_is_no_shortage() -> None:
    assert describe_shortage("n1", 2 * GIB, 4 * GIB, 3 * GIB) is None
    assert describe_shortage("n1", 2 * GIB, 4 * GIB, None) is None


def test_too_little_memory_names_host_sizes_and_remedy() -> None:
    message = describe_shortage("n1", 10 * GIB, 4 * GIB, 3 * GIB)
    assert message is not None
    assert message.startswith("n1: windows of 10.0 GiB do not fit 4.0 GiB of free memory")
    assert "roles.servers" in message and "exchange.slots" in message


def test_too_little_shared_memory_names_the_file_system() -> None:
    message = describe_shortage("n1", 3 * GIB, 4 * GIB, GIB // 2)
    assert message is not None
    assert "0.5 GiB free in /dev/shm" in message and "remount" in message


def test_ranks_that_share_a_gpu_share_its_memory() -> None:
    own = [GpuShare("n1", "GPU-1", 3 * GIB, 4 * GIB), GpuShare("n1", "GPU-2", 3 * GIB, 4 * GIB)]
    assert describe_gpu_shortage([]) is None and describe_gpu_shortage(own) is None
    assert describe_gpu_shortage([*own, GpuShare("n2", "GPU-1", 3 * GIB, 4 * GIB)]) is None, "of another host"
    message = describe_gpu_shortage([*own, GpuShare("n1", "GPU-2", 2 * GIB, 3 * GIB)])
    assert message is not None
    assert message.startswith("n1: windows and shards of 5.0 GiB do not fit 3.0 GiB free on GPU GPU-2")
    assert "roles.servers" in message and "exchange.slots" in message
