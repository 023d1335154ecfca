"""No wake-up is missed: one rank waits, others wake it, in every order of their loads and stores."""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hpcasync.comm import wake_ups
from hpcasync.comm.wake_ups import ANYTHING, WakeUps, WakeUpWait


class _OverError(Exception):
    """Nobody who could wake this thread is left."""


class Stage:
    """Runs threads one access to memory at a time, in an order that `choose` decides."""

    def __init__(self, choose: Callable[[list[int]], int]) -> None:
        self._choose = choose
        self._turns: list[threading.Semaphore] = []
        self._back = threading.Semaphore(0)
        self._current = 0
        self._asleep: set[int] = set()
        self.is_over = False

    def access(self) -> None:
        """Before each access: let somebody else go on, perhaps."""
        own = self._current
        self._back.release()
        self._turns[own].acquire()
        if self.is_over:
            raise _OverError

    def fall_asleep(self) -> None:
        """Go on only after somebody has called `wake`."""
        self._asleep.add(self._current)
        self.access()

    def wake(self, who: int) -> None:
        self._asleep.discard(who)

    def run(self, plays: list[Callable[[], None]]) -> bool:
        """Whether all came to their end."""
        self._turns = [threading.Semaphore(0) for _ in plays]
        done: set[int] = set()

        def play(number: int) -> None:
            self._turns[number].acquire()
            with contextlib.suppress(_OverError):
                if not self.is_over:
                    plays[number]()
                    done.add(number)
            self._back.release()

        threads = [threading.Thread(target=play, args=(number,)) for number in range(len(plays))]
        for thread in threads:
            thread.start()
        while ready := [number for number in range(len(plays)) if number not in done | self._asleep]:
            self._current = self._choose(ready)
            self._turns[self._current].release()
            self._back.acquire()
        self.is_over = True
        for turn in self._turns:
            turn.release()
        for thread in threads:
            thread.join()
        return len(done) == len(plays) and not self._asleep


class Memory:
    """Words whose every access is a step."""

    def __init__(self, stage: Stage, num_words: int) -> None:
        self._stage = stage
        self.words = [0] * num_words

    def __getitem__(self, index: int) -> int:
        self._stage.access()
        return self.words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._stage.access()
        self.words[index] = value


class Sleep:
    """As `comm.futex`, but that nobody wakes by himself."""

    def __init__(self, stage: Stage, memory: Memory) -> None:
        self._stage = stage
        self._memory = memory

    def sleep_while(self, address: object, expected: int, seconds: float) -> None:
        # Comparing and falling asleep are one step, as in the kernel.
        if self._memory[0] == expected:
            self._stage.fall_asleep()

    def wake(self, address: object) -> None:
        self._stage.access()
        self._stage.wake(0)


class NoWindow:
    """Orders nothing: here every access is seen at once."""

    def Sync(self) -> None:  # noqa: N802
        pass


def wake_ups_of(rank: int, memory: Memory, numbers: Iterator[int]) -> WakeUps:
    made: Any = WakeUps.__new__(WakeUps)
    made._window, made._words, made._addresses, made._rank = NoWindow(), [memory] * 3, [None] * 3, rank
    made._numbers = numbers
    return made  # type: ignore[no-any-return]


def plays_through(
    choose: Callable[[list[int]], int], monkeypatch: pytest.MonkeyPatch, topics: list[int], awaited: int
) -> bool:
    """Rank 0 waits until each of the others has stored a word; whether it comes to its end."""
    stage = Stage(choose)
    memory, words = Memory(stage, 2), Memory(stage, len(topics))
    monkeypatch.setattr(wake_ups, "futex", Sleep(stage, memory))

    def wait() -> None:
        waiting = WakeUpWait(wake_ups_of(0, memory, iter(())), awaited)
        while not all(words[number] for number in range(len(topics))):
            waiting.wait()

    def wake(number: int) -> Callable[[], None]:
        def play() -> None:
            words[number] = 1
            wake_ups_of(1 + number, memory, iter([1 + number])).wake(0, topics[number])

        return play

    return stage.run([wait, *(wake(number) for number in range(len(topics)))])


class EveryOrder:
    """Chooses differently each time, until all has been tried."""

    def __init__(self) -> None:
        self._plan: list[tuple[int, int]] = []  # what was chosen, of how many
        self._position = 0

    def choose(self, ready: list[int]) -> int:
        if self._position == len(self._plan):
            self._plan.append((0, len(ready)))
        chosen, _ = self._plan[self._position]
        self._position += 1
        return ready[chosen]

    def next(self) -> bool:
        """Begin another order; False if there is none."""
        self._position = 0
        while self._plan and self._plan[-1][0] + 1 == self._plan[-1][1]:
            self._plan.pop()
        if not self._plan:
            return False
        chosen, number = self._plan[-1]
        self._plan[-1] = chosen + 1, number
        return True


@pytest.mark.parametrize(("topic", "awaited"), [(ANYTHING, ANYTHING), (7, ANYTHING), (ANYTHING, 7), (7, 7)])
def test_no_order_of_one_ring_is_missed(monkeypatch: pytest.MonkeyPatch, topic: int, awaited: int) -> None:
    orders, num_orders = EveryOrder(), 0
    while num_orders == 0 or orders.next():
        num_orders += 1
        assert plays_through(orders.choose, monkeypatch, [topic], awaited), f"order {num_orders}"
    assert num_orders > 100


def test_a_ring_for_another_topic_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = EveryOrder()
    outcomes: set[bool] = set()
    while not outcomes or orders.next():
        outcomes.add(plays_through(orders.choose, monkeypatch, [8], 7))
    assert outcomes == {True, False}, "the check of the check: who waits for something else sleeps on"


def test_who_looks_for_sleepers_before_ringing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def wake(self: Any, rank: int, topic: int) -> None:
        awaited = self._words[rank][1]
        self._words[rank][0] = next(self._numbers)
        if awaited:
            wake_ups.futex.wake(self._addresses[rank])  # type: ignore[attr-defined]

    monkeypatch.setattr(WakeUps, "wake", wake)
    orders = EveryOrder()
    outcomes: set[bool] = set()
    while not outcomes or orders.next():
        outcomes.add(plays_through(orders.choose, monkeypatch, [7], 7))
    assert outcomes == {True, False}


@pytest.mark.parametrize("seed", range(5))
def test_many_orders_of_two_rings(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(300):
        assert plays_through(generator.choice, monkeypatch, [7, ANYTHING], 7)
