"""Sleeping on a word that another process changes."""

import ctypes
import mmap
import multiprocessing
import threading

import pytest

from hpcasync.comm import futex

pytestmark = pytest.mark.skipif(not futex.is_available(), reason="no futexes are known for this machine")
# Longer than the test may take.
LONG_SECONDS = 3600.0


class Word:
    """32 bits of memory that processes share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._word = ctypes.c_int32.from_buffer(self._memory)
        self.address = ctypes.c_void_p(ctypes.addressof(self._word))

    @property
    def value(self) -> int:
        return self._word.value

    @value.setter
    def value(self, value: int) -> None:
        self._word.value = value


def test_a_word_that_has_changed_lets_nobody_sleep() -> None:
    word = Word()
    word.value = -7
    futex.sleep_while(word.address, 0, LONG_SECONDS)
    futex.sleep_while(word.address, 7, LONG_SECONDS)


def test_a_sleep_ends_after_its_time() -> None:
    futex.sleep_while(Word().address, 0, 0.001)
    futex.sleep_while(Word().address, 0, 0.0)


def answer(word: Word, answered: Word, num_words: int) -> None:
    """Sleep until each number from 1 on is there; say so."""
    for number in range(1, num_words + 1):
        while word.value < number:
            futex.sleep_while(word.address, number - 1, LONG_SECONDS)
        answered.value = number
        futex.wake(answered.address)


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_the_sleeper_is_woken(kind: str) -> None:
    word, answered = Word(), Word()
    arguments = word, answered, 200
    other = (
        multiprocessing.get_context("fork").Process(target=answer, args=arguments)
        if kind == "process"
        else threading.Thread(target=answer, args=arguments)
    )
    other.start()
    for number in range(1, 201):
        word.value = number
        futex.wake(word.address)
        while answered.value < number:
            futex.sleep_while(answered.address, number - 1, LONG_SECONDS)
    other.join()
