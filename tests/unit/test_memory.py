"""Windows that do not fit are refused with the host, the sizes and a remedy."""

from hpcasync.ps.transport.window_memory import describe_shortage

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
