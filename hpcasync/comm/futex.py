"""Sleeping on a word of shared memory until another process wakes who sleeps there (Linux: `man 2 futex`)."""

import ctypes
import functools
import platform
import sys

# Numbers of the system call; 64-bit machines only, where a `struct timespec` is two longs.
_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98, "ppc64le": 221, "s390x": 238}
_NUMBER = ctypes.c_long(_NUMBERS.get(platform.machine(), 0) if sys.platform == "linux" else 0)
# Neither is private to a process.
_WAIT, _WAKE = ctypes.c_long(0), ctypes.c_long(1)
_EVERYBODY = ctypes.c_long(2**31 - 1)
# Arguments are made before, and no types declared: that takes half the time.
_system_call = ctypes.CDLL(None).syscall if _NUMBER.value else None


def is_available() -> bool:
    """Whether this machine has them, as far as is known here."""
    return _system_call is not None


def sleep_while(address: ctypes.c_void_p, expected: int, seconds: float) -> None:
    """Sleep while the 32-bit word at `address` is `expected`, until `wake`; not at all if it is something else.

    Ends after so many seconds anyway, and sooner for no reason that is told (a signal).
    """
    assert _system_call is not None
    _system_call(_NUMBER, address, _WAIT, ctypes.c_long(expected), ctypes.byref(_timespec(seconds)))


def wake(address: ctypes.c_void_p) -> None:
    """Wake all processes that sleep on the word at `address`."""
    assert _system_call is not None
    _system_call(_NUMBER, address, _WAKE, _EVERYBODY, None)


@functools.lru_cache
def _timespec(seconds: float) -> "ctypes.Array[ctypes.c_long]":
    return (ctypes.c_long * 2)(int(seconds), int(seconds % 1 * 1e9))
