"""Signals that ask a training job to save and end: USR1, USR2 (batch systems, before they preempt), TERM and INT.

Every rank notes them, so that none dies of one; the rank that decides when training ends asks `received`.
"""

import signal
from types import FrameType

from hpcasync.deaths import lifeline

_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
_received: list[int] = []


def note_stop_signals() -> None:
    """From now on the first of them is noted instead of ending the process. A second TERM or INT ends it."""
    for number in _SIGNALS:
        signal.signal(number, _note)


def received() -> str:
    """Name of the first of the signals that came, for example "SIGUSR1"; empty while none has."""
    return signal.Signals(_received[0]).name if _received else ""


def reason() -> str:
    """Why training is to end, for people; empty while no signal has come."""
    if not (name := received()):
        return ""
    told = lifeline.told_signal() or name
    return "interrupted" if told == "SIGINT" else f"preempted by {told}"


def forget() -> None:
    """Go back to the state before `note_stop_signals`."""
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _received.clear()


def _note(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    if number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
